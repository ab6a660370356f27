"""SIGTERM asks once, ends the process the second time, and means what it meant before once the context is left."""

import os
import signal
import subprocess
import sys

from agent_jax import preemption
from agent_jax.preemption import StopRequest


def test_a_sigterm_is_noted_and_the_handler_of_before_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_sigterm_that_comes_while_the_run_asks_is_not_forgotten(monkeypatch):
    with StopRequest() as stop:
        def connected():
            os.kill(os.getpid(), signal.SIGTERM)
            return False

        monkeypatch.setattr(preemption, "connected", connected)
        stop.before_step(1)
        monkeypatch.undo()
        assert stop.before_step(2)


def test_a_second_sigterm_ends_the_process():
    code = """
import os, signal
from agent_jax.preemption import StopRequest
with StopRequest() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    print("noted", stop.requested, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("alive", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "noted True\n")
