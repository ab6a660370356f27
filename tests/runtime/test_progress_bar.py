from __future__ import annotations

import subprocess
import sys
import time

import pytest
from absl import logging
from terminals import Terminal, terminal

from agent_jax.runtime.progress_bar import ProgressBar


def test_text_goes_above_the_bars_of_a_terminal_and_each_end_erases_its_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = logging.get_absl_handler().python_handler
    with terminal() as seen:
        monkeypatch.setattr(handler, "stream", sys.stderr)
        with ProgressBar("training", 10) as training:
            training.add(4, "loss 2.5")
            print("validation 4/10")
            with ProgressBar("acting", 2) as acting:
                acting.add(0, "GoToObj")
                acting.add(1)
                print("on standard error", file=sys.stderr)
                handler.stream.write("of absl's log\n")
            assert sys.stderr.isatty()
        print("the end")
        assert handler.stream is sys.stderr
    assert "training 4/10 |" in seen.text
    assert "acting 1/2 |" in seen.text
    assert "| ETA 00:00, GoToObj" in seen.text
    assert seen.lines == ["validation 4/10", "on standard error", "of absl's log", "the end", ""]


def test_an_exception_erases_the_bar_of_a_terminal() -> None:
    def fail() -> None:
        with ProgressBar("training", 10) as training:
            training.add(0, "loss 2.5")
            raise FloatingPointError("the loss is nan")

    with terminal() as seen:
        with pytest.raises(FloatingPointError) as error:
            fail()
        print(error.value)
    assert "loss 2.5" in seen.text
    assert seen.lines == ["the loss is nan", ""]


def test_the_answer_to_a_ctrl_c_replaces_the_bar_of_a_terminal() -> None:
    code = """
import os, signal
from agent_jax.runtime.preemption import StopRequest
from agent_jax.runtime.progress_bar import ProgressBar
with ProgressBar("training", 10) as training, StopRequest() as stop:
    training.add(0, "loss 2.5")
    os.kill(os.getpid(), signal.SIGINT)
print("stopped by", stop.by)
"""
    seen = Terminal()
    subprocess.run([sys.executable, "-c", code], stdout=seen.slave, stderr=seen.slave, check=True, timeout=60)
    seen.close()
    assert "loss 2.5" in seen.text
    answer, *rest = seen.lines
    assert answer.startswith("agent_jax: Ctrl-C: stopping after the step under way")
    assert rest == ["stopped by Ctrl-C", ""]


def test_elsewhere_it_is_a_line_every_few_seconds(monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with ProgressBar("prepare", 1_000, "recordings", file=sys.stderr) as prepare, ProgressBar("acting", 9) as acting:
        assert not prepare.shown
        clock[0] = 5.0
        prepare.skip(400)
        for clock[0] in (6.0, 14.9, 15.0, 16.0, 25.0):
            prepare.add(20, "7 steps/s")
            acting.add(1, "GoToObj")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == ("prepare: 460 of 1,000 recordings, 7 steps/s, ETA 1:30\n"
                           "prepare: 500 of 1,000 recordings, 7 steps/s, ETA 1:40\n")
