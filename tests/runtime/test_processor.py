"""What /proc/cpuinfo says of a processor."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from agent_jax.runtime import processor

EPYC = """processor\t: 0
model name\t: AMD EPYC
cpu MHz\t\t: 2445.404
flags\t\t: fpu sse2 avx avx2{more}
"""
GRAVITON = """processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd bf16
CPU implementer\t: 0x41
"""


@pytest.fixture
def cpuinfo(monkeypatch):
    def say(text: str | None) -> None:
        def read(path: Path, **_: str) -> str:
            assert str(path) == "/proc/cpuinfo"
            if text is None:
                raise FileNotFoundError(path)
            return text

        monkeypatch.setattr(Path, "read_text", read)
        processor._fields.cache_clear()

    yield say
    processor._fields.cache_clear()


def test_the_first_core_is_read(cpuinfo):
    cpuinfo(EPYC.format(more="") + "\n" + EPYC.format(more=" avx512f").replace("EPYC", "Other"))
    assert processor.processor_name() == "AMD EPYC"
    assert processor.instructions() == {"fpu", "sse2", "avx", "avx2"}


@pytest.mark.parametrize(("text", "lacks"), [
    (EPYC.format(more=""), True),
    (EPYC.format(more=" avx512f"), True),
    (EPYC.format(more=" avx512f avx512_bf16"), False),
    (EPYC.format(more=" amx_bf16"), False),
    (GRAVITON, False),  # not known to
    (None, False),
])
def test_an_x86_without_the_instructions_lacks_products_of_bfloat16(cpuinfo, text, lacks):
    cpuinfo(text)
    assert processor.lacks_bfloat16_products() == lacks


def test_without_cpuinfo_a_name_and_a_fingerprint_are_left(cpuinfo):
    cpuinfo(None)
    assert processor.processor_name() == (platform.processor() or platform.machine())
    assert len(processor.processor_fingerprint()) == 8


def test_the_fingerprint_is_of_model_and_instructions_alone(cpuinfo):
    found = []
    for text in (EPYC, EPYC.replace("2445.404", "1800.000"), EPYC.replace("EPYC", "EPYC 9"), EPYC + "more\t: 1\n"):
        for more in ("", " avx512f"):
            cpuinfo(text.format(more=more))
            found.append(processor.processor_fingerprint())
    assert found[0:2] == found[2:4] == found[6:8]
    assert len(set(found)) == 4


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="of Linux")
def test_only_cores_that_this_process_may_run_on_count():
    allowed = os.sched_getaffinity(0)
    assert processor.cores() == len(allowed)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert processor.cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
