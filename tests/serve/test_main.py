"""The command serves a checkpoint until a SIGTERM."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from small_runs import copied, environment, flip_a_bit, straight_run

from agent_jax.client import Client
from agent_jax.policy import Policy
from agent_jax.serve import __main__
from agent_jax.serve.options import ServeOptions, read_token

TOKEN = "0123456789abcdef"


def test_the_command_serves_the_newest_undamaged_step_until_sigterm(tmp_path_factory: pytest.TempPathFactory,
                                                                    tmp_path: Path):
    workdir = copied(straight_run(tmp_path_factory.getbasetemp()).workdir, tmp_path / "damaged")
    flip_a_bit(workdir / "checkpoints" / "20")
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    line = [sys.executable, "-m", "agent_jax.serve", "--checkpoint", str(workdir), "--port", "0", "--token_file",
            str(token), "--max_batch", "1", "--ahead"]
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    home = environment(tmp_path)
    with (tmp_path / "stderr").open("w+") as errors, \
            subprocess.Popen(line, stdout=subprocess.PIPE, stderr=errors, text=True, env=home) as running:
        try:
            assert running.stdout is not None
            printed = [running.stdout.readline() for _ in range(2)]
            errors.seek(0)
            assert printed[1].startswith("ready: domain 'tiles' of step 10 at ws://127.0.0.1:"), errors.read()
            address = printed[1].partition("ws://")[2].partition(",")[0]
            with urllib.request.urlopen(f"http://{address}/healthz", timeout=30) as response:
                assert response.status == 200
            with Client(f"ws://{address}", token=TOKEN) as client:
                assert (client.metadata["step"], client.metadata["damaged_steps_passed_over"]) == (10, [20])
                found = [client.act(image, "go to red")["action"] for _ in range(3)]
                running.send_signal(signal.SIGTERM)
                assert running.wait(timeout=60) == 0
            assert "ended after 3 actions" in running.stdout.read()
        finally:
            running.kill()
        errors.seek(0)
        log = errors.read()
    assert TOKEN not in log
    assert "Traceback" not in log
    assert log.count(f"{workdir / 'checkpoints' / '20'} is damaged") == 1
    policy = Policy.load(workdir, step=10)
    assert [policy.act([image], ["go to red"], [0])[0]["action"] for _ in range(3)] == found


def test_user_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for arguments, message in [
        (["--checkpoint", str(tmp_path / "none")], "no checkpoint"),
        (["--checkpoint", ".", "--port", "70000"], "--port=70000: expected 0 (any free one) to 65535"),
        (["--checkpoint", ".", "--max_batch", "0"], "--max_batch=0: expected at least 1"),
        (["--checkpoint", ".", "--token_file", str(tmp_path / "none")], "no such file"),
    ]:
        assert __main__.main(arguments) == 2
        printed = capsys.readouterr().err
        assert message in printed
        assert "Traceback" not in printed


def test_a_port_in_use_is_named(capsys: pytest.CaptureFixture[str]):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert __main__.main(["--checkpoint", "babyai-small", "--port", str(port)]) == 2
    printed = capsys.readouterr().err
    assert f"--port={port} is in use, pass another one" in printed
    assert "Traceback" not in printed


def test_the_token_is_read_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "token"
    path.write_text(f" {TOKEN}\n")
    monkeypatch.setenv("AGENT_JAX_TOKEN", "f" * 20)
    assert read_token(str(path)) == TOKEN
    assert read_token("") == "f" * 20
    for text, reason in (("", "found 0 characters"), ("short", "found 5 characters"), ("with a space in it", "spaces")):
        path.write_text(text)
        with pytest.raises(ValueError, match=reason):
            read_token(str(path))
    monkeypatch.delenv("AGENT_JAX_TOKEN")
    assert read_token("") == ""


def test_every_option_is_a_flag_with_a_checked_range():
    parser = __main__._parser()
    assert parser.parse_args(["--checkpoint", "x"]).host == ServeOptions().host == "127.0.0.1"
    for name, value in {"port": -1, "max_batch": 0, "max_wait_ms": -1.0, "max_connections": 0, "max_message_bytes": 1,
                        "max_rate_hz": -1.0, "ping_s": 0.0, "drain_s": -1.0}.items():
        with pytest.raises(ValueError, match=f"--{name}="):
            ServeOptions(**{name: value})
