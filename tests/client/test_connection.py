"""The robot's end: light to import, and never silently in an episode other than it believes."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import Served, babyai_policy, eventually, make_image, served, twin

from agent_jax.client import Client, __main__
from agent_jax.client.demo import RandomObservations, format_table, measure
from agent_jax.policy import Policy

TEXT = "go to a red ball"


@pytest.fixture(scope="module")
def babyai() -> Policy:
    return twin(babyai_policy())


@pytest.fixture(scope="module")
def robots(babyai: Policy) -> Iterator[Served]:
    with served(babyai) as running:
        yield running


def lose(client: Client) -> None:
    """Pull the cable."""
    assert client._connection is not None
    client._connection.socket.shutdown(socket.SHUT_RDWR)


def test_importing_the_client_imports_neither_jax_nor_the_model():
    code = ("import sys, agent_jax.client, agent_jax.client.demo, agent_jax.client.__main__\n"
            "print(sorted({name.partition('.')[0] for name in sys.modules if not hasattr(sys.modules[name], '__path__')"
            " or '.' not in name}), sorted(name for name in sys.modules if name.startswith('agent_jax')))")
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    libraries, own = (set(json.loads(part.replace("'", '"') + "]")) for part in said.strip().split("]")[:2])
    assert not libraries & {"jax", "jaxlib", "flax", "orbax", "transformers", "tokenizers", "torch", "PIL", "scipy"}
    assert {"numpy", "msgpack", "websockets"} <= libraries
    shared = {"agent_jax", "agent_jax.runtime", "agent_jax.runtime.interrupts"}
    assert all(name in shared or name.startswith("agent_jax.client") for name in own)


def test_a_lost_connection_is_not_mended_before_the_next_reset(robots: Served):
    with Client(robots.url) as client:
        fresh = client.act(make_image(), TEXT)
        lose(client)
        for _ in range(2):
            with pytest.raises(ConnectionError, match="the connection"):
                client.act(make_image(), TEXT)
        client.reset()
        assert client.act(make_image(), TEXT) == fresh
        assert client.histories == 2
        lose(client)
        client.reset()
        assert client.act(make_image(), TEXT) == fresh


def test_always_reconnecting_counts_the_histories_and_never_does_not_reconnect(robots: Served):
    with Client(robots.url, reconnect="always") as client:
        client.act(make_image(), TEXT)
        lose(client)
        client.act(make_image(), TEXT)
        assert client.histories == 2
    with Client(robots.url, reconnect="never") as client:
        lose(client)
        for _ in range(2):
            with pytest.raises(ConnectionError):
                client.reset()


def test_a_late_reply_is_never_taken_for_the_next_one(babyai: Policy, monkeypatch: pytest.MonkeyPatch):
    gate, step = threading.Event(), babyai.step

    def late(prepared: Any, env_ids: Any) -> Any:
        assert gate.wait(60)
        return step(prepared, env_ids)

    monkeypatch.setattr(babyai, "step", late)
    with served(babyai) as running, Client(running.url, timeout=0.3) as client:
        with pytest.raises(TimeoutError, match="no reply within 0.3 s"):
            client.act(make_image(), TEXT)
        gate.set()
        with pytest.raises(ConnectionError, match="call reset"):
            client.act(make_image(), TEXT)
        client.timeout = 30
        client.reset()
        client.act(make_image(), TEXT)
        eventually(lambda: len(running.server.robots) == 1)


def test_no_server_no_url_and_no_such_policy_are_said():
    with contextlib.closing(socket.socket()) as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionError, match="no server within 0.3 s"):
            Client(f"ws://127.0.0.1:{bound.getsockname()[1]}", connect_timeout=0.3)
    with pytest.raises(ValueError, match="expected ws://HOST:PORT"):
        Client("127.0.0.1:8000")
    with pytest.raises(ValueError, match="expected 'reset', 'always' or 'never'"):
        Client("ws://127.0.0.1", reconnect="sometimes")  # pyright: ignore[reportArgumentType]


def test_choices_of_a_state_are_drawn_among_their_values():
    field = {"shape": [2], "dtype": "float32", "low": [0, -1], "high": [1, 1], "choices": {"1": [1.0, -1.0]}}
    seen = RandomObservations({"state_fields": {"s": field}, "cameras": [], "image_size": 8}, 0)
    drawn = np.stack([state["s"] for state in (seen.state() for _ in range(50)) if state])
    assert set(drawn[:, 1].tolist()) == {1.0, -1.0}
    assert len(set(drawn[:, 0].tolist())) == 50


def test_measuring_counts_every_action_of_every_robot_and_prints_a_table(robots: Served):
    before = robots.server.figures.counts["actions"]
    found = measure(robots.url, steps=5, clients=3, warm_up=1)
    assert robots.server.figures.counts["actions"] - before == 3 * (5 + 1)
    assert {len(values) for values in found.milliseconds.values()} == {15}
    assert found.to_json()["actions"] == 15
    lines = format_table([found]).splitlines()
    assert lines[0].split() == ["clients", "milliseconds", "p50", "p90", "p99", "actions/s"]
    assert [line.split()[-4 if i else -5] for i, line in enumerate(lines[1:])] == [
        "trip", "queue", "prepare", "policy", "total"]


def test_a_robot_that_asks_at_a_rate_is_not_asked_for_faster(robots: Served):
    assert measure(robots.url, steps=6, rate_hz=50, warm_up=0).rate_hz < 60


def test_measuring_a_server_that_turns_a_robot_away_raises_what_it_said(babyai: Policy):
    with served(babyai, token="0123456789abcdef") as running, pytest.raises(ConnectionError, match="401"):
        measure(running.url, steps=1, clients=2)
    with pytest.raises(ValueError, match="steps=0"):
        measure("ws://127.0.0.1", steps=0)


def test_the_demo_prints_what_it_is_told_and_writes_the_figures(robots: Served, tmp_path: Path,
                                                                 capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "figures.json"
    assert __main__.main(["demo", robots.url, "--steps", "2", "--clients", "2", "--json", str(path)]) == 0
    said = capsys.readouterr().out
    assert "domain 'babyai' of step 7" in said
    assert "round trip" in said
    assert json.loads(path.read_text())["round_trip_ms"].keys() == {"p50", "p90", "p99"}
    assert __main__.main(["demo", "no-url"]) == 2
    assert "expected ws://HOST:PORT" in capsys.readouterr().err
