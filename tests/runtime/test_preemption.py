"""SIGTERM asks once, ends the process the second time, and means what it meant before once the context is left."""

import os
import signal
import subprocess
import sys

import pytest

from agent_jax.runtime import preemption
from agent_jax.runtime.preemption import StopRequest


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


def test_a_ctrl_c_is_noted_and_the_handlers_of_before_come_back(capfd):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert (stop.requested, stop.by) == (True, "Ctrl-C")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert "Ctrl-C: stopping after the step under way, which is saved; once more ends at once" in capfd.readouterr().err


@pytest.mark.parametrize(("first", "second"), [("SIGINT", "SIGINT"), ("SIGTERM", "SIGINT"), ("SIGINT", "SIGTERM")])
def test_a_second_request_ends_the_process_at_once_without_a_traceback(first, second):
    code = f"""
import os, signal, threading
from agent_jax.runtime.preemption import StopRequest
with StopRequest() as stop:
    os.kill(os.getpid(), signal.{first})
    print("noted", stop.requested, flush=True)
    os.kill(os.getpid(), signal.{second})
    print("alive", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (-getattr(signal, second), "noted True\n")
    assert "Traceback" not in done.stderr


def test_outside_the_loop_a_ctrl_c_ends_the_process_at_once_without_a_traceback():
    code = """
import os, signal
from agent_jax.runtime.preemption import end_by_interrupts
end_by_interrupts()
os.kill(os.getpid(), signal.SIGINT)
print("alive", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_where_ctrl_c_is_ignored_it_stays_so():
    """A background job of launch/restart.sh gets the terminal's Ctrl-C as well as the SIGTERM that the script makes of
    it: two requests would end it without a checkpoint."""
    code = """
import os, signal
from agent_jax.runtime.preemption import StopRequest, end_by_interrupts
end_by_interrupts()
os.kill(os.getpid(), signal.SIGINT)
with StopRequest() as stop:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    print("noted", stop.requested, stop.by, flush=True)
"""
    done = subprocess.run(["sh", "-c", 'trap "" INT; exec "$0" -c "$1"', sys.executable, code], capture_output=True,
                          text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "noted True SIGTERM\n"), done.stderr


def test_a_second_sigterm_ends_the_process():
    code = """
import os, signal
from agent_jax.runtime.preemption import StopRequest
with StopRequest() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    print("noted", stop.requested, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("alive", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "noted True\n")
