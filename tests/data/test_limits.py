from __future__ import annotations

import pytest

from agent_jax.data.limits import MAX_READ_VARIABLE, check_unpacked, max_extra_bytes


def test_the_limit_is_512_mb_more_than_the_size_of_the_data(monkeypatch):
    monkeypatch.delenv(MAX_READ_VARIABLE, raising=False)
    assert max_extra_bytes() == 512 * 2**20
    check_unpacked(100 + 512 * 2**20, 100, "file")
    with pytest.raises(ValueError, match=r"^some\.png: 100 bytes .* 536,871,013, .*512 MB.*AGENT_JAX_MAX_READ_MB=513 "):
        check_unpacked(101 + 512 * 2**20, 100, "some.png")


def test_the_value_in_the_message_is_sufficient(monkeypatch):
    monkeypatch.setenv(MAX_READ_VARIABLE, "513")
    check_unpacked(101 + 512 * 2**20, 100, "some.png")


@pytest.mark.parametrize("text", ["0", "-1", "2.5", "many", "9" * 5000])
def test_a_limit_that_is_not_a_number_is_refused_by_name(monkeypatch, text):
    monkeypatch.setenv(MAX_READ_VARIABLE, text)
    with pytest.raises(ValueError, match="AGENT_JAX_MAX_READ_MB=.*whole number"):
        max_extra_bytes()
