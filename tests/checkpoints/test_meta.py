"""The meta dict as other versions wrote it."""

from __future__ import annotations

import json

import pytest
from etils import epath

from agent_jax.checkpoints import meta as checkpoint_meta
from agent_jax.checkpoints.meta import read, sealed


def step(tmp_path, content) -> epath.Path:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "data.json").write_text(json.dumps(content))
    return epath.Path(tmp_path)


def test_the_one_camera_of_version_1_is_read_as_the_first_of_several(tmp_path, monkeypatch):
    domain = {"image": "steps/observation/rgb", "window": 4}
    meta = {"config": {"data": {"domains": {"tiles": dict(domain)}}}, "domains": {"tiles": dict(domain)}}
    monkeypatch.setattr(checkpoint_meta, "FORMAT_VERSION", 1)
    old = sealed(meta, 3, None, {})
    monkeypatch.undo()
    found = read(step(tmp_path, old))
    expected = {"cameras": ["steps/observation/rgb"], "window": 4}
    assert found["domains"] == {"tiles": expected}
    assert found["config"]["data"]["domains"] == {"tiles": expected}


@pytest.mark.parametrize("meta", [{}, {"config": {}, "domains": {}}])
def test_a_version_1_without_domains_is_read_as_it_is(tmp_path, monkeypatch, meta):
    monkeypatch.setattr(checkpoint_meta, "FORMAT_VERSION", 1)
    old = sealed(meta, 3, None, {})
    monkeypatch.undo()
    assert read(step(tmp_path, old)) == old
