"""The client: few imports, and no silent change of the episode."""

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
    """Break the connection."""
    assert client._connection is not None
    client._connection.socket.shutdown(socket.SHUT_RDWR)


def test_importing_the_client_imports_neither_jax_nor_the_model():
    code = ("import sys, agent_jax.client, agent_jax.client.demo, agent_jax.client.__main__\n"
            "print(sorted({name.partition('.')[0] for name in sys.modules if not hasattr(sys.modules[name], '__path__')"
            " or '.' not in name}), sorted(name for name in sys.modules if name.startswith('agent_jax')))")
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    libraries, own = (set(json.loads(part.replace("'", '"') + "]")) for part in printed.strip().split("]")[:2])
    assert not libraries & {"jax", "jaxlib", "flax", "orbax", "transformers", "tokenizers", "torch", "PIL", "scipy"}
    assert {"numpy", "msgpack", "websockets"} <= libraries
    shared = {"agent_jax", "agent_jax.runtime", "agent_jax.runtime.interrupts"}
    assert all(name in shared or name.startswith("agent_jax.client") for name in own)


def test_a_lost_connection_is_opened_again_at_the_next_reset(robots: Served):
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


def test_reconnect_always_counts_histories_and_never_does_not_reconnect(robots: Served):
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


def test_a_late_reply_is_not_used_for_the_next_request(babyai: Policy, monkeypatch: pytest.MonkeyPatch):
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


def test_no_server_an_invalid_url_and_an_invalid_option_are_errors():
    with contextlib.closing(socket.socket()) as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionError, match="no server within 0.3 s"):
            Client(f"ws://127.0.0.1:{bound.getsockname()[1]}", connect_timeout=0.3)
    with pytest.raises(ValueError, match="expected ws://HOST:PORT"):
        Client("127.0.0.1:8000")
    with pytest.raises(ValueError, match="reconnect='sometimes'"):
        Client("ws://127.0.0.1", reconnect="sometimes")  # pyright: ignore[reportArgumentType]


def test_choices_of_a_state_are_drawn_from_their_values():
    field = {"shape": [2], "dtype": "float32", "low": [0, -1], "high": [1, 1], "choices": {"1": [1.0, -1.0]}}
    observations = RandomObservations({"state_fields": {"s": field}, "cameras": [], "image_size": 8}, 0)
    drawn = np.stack([state["s"] for state in (observations.state() for _ in range(50)) if state])
    assert set(drawn[:, 1].tolist()) == {1.0, -1.0}
    assert len(set(drawn[:, 0].tolist())) == 50


def test_measure_counts_every_action_of_every_client_and_prints_a_table(robots: Served):
    before = robots.server.metrics.counts["actions"]
    found = measure(robots.url, steps=5, clients=3, warm_up=1)
    assert robots.server.metrics.counts["actions"] - before == 3 * (5 + 1)
    assert {len(values) for values in found.milliseconds.values()} == {15}
    assert found.to_json()["actions"] == 15
    lines = format_table([found]).splitlines()
    assert lines[0].split() == ["clients", "milliseconds", "p50", "p90", "p99", "actions/s"]
    assert [line.split()[-4 if i else -5] for i, line in enumerate(lines[1:])] == [
        "trip", "queue", "prepare", "policy", "total"]


def test_a_client_with_a_rate_does_not_exceed_it(robots: Served):
    assert measure(robots.url, steps=6, rate_hz=50, warm_up=0).rate_hz < 60


def test_measuring_a_server_that_refuses_a_client_raises_its_error(babyai: Policy):
    with served(babyai, token="0123456789abcdef") as running, pytest.raises(ConnectionError, match="401"):
        measure(running.url, steps=1, clients=2)
    with pytest.raises(ValueError, match="steps=0"):
        measure("ws://127.0.0.1", steps=0)


def test_the_demo_prints_the_metadata_and_writes_the_results(robots: Served, tmp_path: Path,
                                                             capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "figures.json"
    assert __main__.main(["demo", robots.url, "--steps", "2", "--clients", "2", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "domain 'babyai' of step 7" in printed
    assert "round trip" in printed
    assert json.loads(path.read_text())["round_trip_ms"].keys() == {"p50", "p90", "p99"}
    assert __main__.main(["demo", "no-url"]) == 2
    assert "expected ws://HOST:PORT" in capsys.readouterr().err
