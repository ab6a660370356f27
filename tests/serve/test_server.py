"""The server: each robot has its own history, and an error reaches only the robot that caused it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_stores import CAMERAS, babyai_domain, babyai_store, language_table_domain
from served import Served, babyai_policy, eventually, make_image, served, table_policy, tiny_policy, twin
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from agent_jax.actions import LANGUAGE_TABLE
from agent_jax.client import BadRequestError, Client, ServerError, wire
from agent_jax.client.__main__ import main as client_command
from agent_jax.client.demo import RandomObservations, measure
from agent_jax.data.images import prepare_image
from agent_jax.data.store.store import Store
from agent_jax.policy import Policy
from agent_jax.serve.limits import ActionLimits

TEXT = "push the red block left"
STATE = {"effector_target_translation": np.float32([0.3, 0.1]), "effector_translation": np.float32([0.2, 0.0])}
ACT = {"images": make_image(), "instruction": TEXT, "state": STATE}
TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def table() -> Policy:
    return twin(table_policy())


@pytest.fixture(scope="module")
def robots(table: Policy) -> Iterator[Served]:
    """A server with a state and actions of real numbers, for tests that do not change it."""
    with served(table, max_message_bytes=50_000) as running:
        yield running


def http_get(url: str, token: str = "") -> tuple[int, str]:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def recorded_episodes(store: Store, count: int) -> list[list[tuple[np.ndarray, str]]]:
    """The first `count` images with instructions of a store, by episode."""
    episodes: list[list[tuple[np.ndarray, str]]] = []
    for episode in store.split("train"):
        images = episode.values("steps/observation/rgb", 0, min(episode.steps, count - sum(map(len, episodes))))
        text = episode.texts("instruction")[0]
        episodes.append([(prepare_image(image, 0), text) for image in images])
    assert sum(map(len, episodes)) == count
    return episodes


def compare_served_with_in_process(directory: Path, count: int) -> None:
    """Four robots replay the episodes of a store in parallel; the policy alone acts one episode after another."""
    lengths = np.random.default_rng(0).integers(1, 16, count // 5).tolist()
    episodes = recorded_episodes(babyai_store(directory / "store", lengths), count)
    own, found = twin(babyai_policy()), {}
    errors: list[BaseException] = []

    def robot(url: str, number: int) -> None:
        try:
            with Client(url) as client:
                for index in range(number, len(episodes), 4):
                    client.reset()
                    found[index] = [int(client.act(image, text)["action"]) for image, text in episodes[index]]
        except Exception as error:  # noqa: BLE001 - handed to the test
            errors.append(error)

    with served(twin(own), max_wait_ms=5, max_batch=4) as running:
        threads = [threading.Thread(target=robot, args=(running.url, number)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert running.server.metrics.summary()["mean_batch"] > 1.5
    actions = set()
    for index, episode in enumerate(episodes):
        own.reset([0])
        expected = [int(own.act([image], [text], [0])[0]["action"]) for image, text in episode]
        assert found[index] == expected, f"episode {index}"
        actions |= set(expected)
    assert len(actions) > 1


def test_serving_and_in_process_acting_choose_the_same_actions_on_recorded_observations(tmp_path: Path):
    compare_served_with_in_process(tmp_path, 120)


@pytest.mark.slow
def test_serving_and_in_process_acting_choose_the_same_actions_on_1000_recorded_observations(tmp_path: Path):
    compare_served_with_in_process(tmp_path, 1000)


def test_several_actions_per_image_are_one_reply_within_the_limits(capsys: pytest.CaptureFixture[str]):
    policy = tiny_policy(language_table_domain(window=4, actions_per_image=2))
    own, low = twin(policy), np.float32(-0.001)
    limits = ActionLimits(LANGUAGE_TABLE, {"action": (np.full(2, low), -np.full(2, low))})
    with served(policy, limits=limits, max_batch=1) as running, Client(running.url) as client:
        assert (client.metadata["actions_per_image"], client.metadata["replan_every"]) == (2, 2)
        for seed in range(3):
            found = client.act(make_image(seed), TEXT, STATE)
            expected = own.act([make_image(seed)], [TEXT], [0], [STATE])[0]
            assert len(found) == len(expected) == 2
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one["action"], np.clip(other["action"], low, -low))
        assert client.clamped
        assert all(one.startswith(("action 1 of 2: action[", "action 2 of 2: action[")) for one in client.clamped)
        assert running.server.metrics.counts["actions"] == 6
        assert client_command(["demo", running.url, "--steps", "2"]) == 0
        report = measure(running.url, 3)
        assert (len(report.milliseconds["round_trip_ms"]), report.actions) == (3, 6)
    assert "2 actions: action=" in capsys.readouterr().out


def test_the_first_message_is_the_policys_metadata(robots: Served, table: Policy):
    with Client(robots.url) as client:
        metadata = client.metadata
    domain = table.domain
    assert metadata["vocabulary_hash"] == domain.vocabulary.fingerprint()
    assert metadata["action_spec"] == json.loads(json.dumps(LANGUAGE_TABLE.to_dict()))
    assert metadata["action_fields"]["action"] == {"shape": [2], "dtype": "float32", "low": [-0.03] * 2,
                                                   "high": [0.03] * 2, "choices": {}}
    assert metadata["state_fields"].keys() == domain.state.spec.fields.keys()
    assert (metadata["cameras"], metadata["image_size"], metadata["window"], metadata["step"]) == (["rgb"], 16, 2, 7)
    assert (metadata["rate_hz"], metadata["max_message_bytes"]) == (10.0, 50_000)


def test_random_observations_fit_the_policy(robots: Served, table: Policy):
    with Client(robots.url) as client:
        observations = RandomObservations(client.metadata, 0)
        states = [observations.state() for _ in range(50)]
        client.act(observations.images(), TEXT, states[0])
    low, high = table.domain.state.spec.bounds("effector_translation")
    drawn = np.stack([state["effector_translation"] for state in states if state])
    assert np.all((drawn >= np.float32(low)) & (drawn <= np.float32(high)))


def test_every_reply_is_timed_and_metrics_have_the_quantiles(robots: Served):
    with Client(robots.url) as client:
        action = client.act(make_image(), TEXT, STATE)
        assert action["action"].dtype == np.float32
        assert client.timing.keys() == {"queue_ms", "prepare_ms", "policy_ms", "total_ms", "batch", "round_trip_ms"}
        assert client.timing["policy_ms"] <= client.timing["total_ms"] <= client.timing["round_trip_ms"]
    status, body = http_get(robots.http + "/metrics")
    assert status == 200
    assert json.loads(body)["latency"]["policy_ms"].keys() == {"p50", "p90", "p99"}
    assert http_get(robots.http + "/elsewhere")[0] == 404


def test_a_reset_begins_an_episode_and_a_connection_has_its_own_history(robots: Served):
    first, second = make_image(1), make_image(2)
    with Client(robots.url) as one, Client(robots.url) as other:
        fresh = one.act(first, TEXT, STATE)["action"]
        later = [one.act(second, TEXT, STATE)["action"] for _ in range(2)]
        np.testing.assert_array_equal(other.act(first, TEXT, STATE)["action"], fresh)
        one.reset()
        assert one.histories == 2
        np.testing.assert_array_equal(one.act(first, TEXT, STATE)["action"], fresh)
        np.testing.assert_array_equal([other.act(second, TEXT, STATE)["action"] for _ in range(2)], later)


def test_nothing_remains_of_robots_that_disconnect_during_an_episode(table: Policy):
    with served(table, ping_s=0.3) as running:
        threads = threading.active_count()
        for number in range(60):
            with connect(running.url, compression=None) as connection:
                connection.recv()
                connection.send(wire.pack(ACT))
                connection.recv(timeout=30)
                if number % 3 == 1:  # the connection breaks while an answer is computed
                    connection.send(wire.pack(ACT))
                    connection.socket.shutdown(socket.SHUT_RDWR)
                elif number % 3 == 2:
                    with contextlib.suppress(ConnectionClosed):
                        connection.send(b"\0" * 9_000_000)  # larger than any message may be
        eventually(lambda: not running.server.robots and not table._actor.episodes)
        eventually(lambda: len(asyncio.all_tasks(running.loop)) <= 4)
        eventually(lambda: threading.active_count() <= threads + 5)
        with Client(running.url) as client:
            client.act(make_image(), TEXT, STATE)
        assert running.server.metrics.counts["connections"] == 61


def test_a_half_open_connection_is_detected_by_its_missing_pong(table: Policy):
    with served(table, ping_s=0.3) as running:
        # A robot that was switched off: its socket stays open and does not answer.
        silent = socket.create_connection(("127.0.0.1", running.server.port))
        silent.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                       b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n")
        eventually(lambda: len(running.server.robots) == 1)
        eventually(lambda: not running.server.robots)
        silent.close()


def test_too_many_connections_and_web_pages_are_refused(table: Policy):
    with served(table, max_connections=1) as running, Client(running.url) as first:
        with pytest.raises(ConnectionError, match="1 robots are connected"):
            Client(running.url, connect_timeout=1.0)
        first.act(make_image(), TEXT, STATE)
        first.close()
        with Client(running.url) as second:
            second.act(make_image(), TEXT, STATE)
        # A web page in a browser can reach this machine's ports; it sends its origin.
        with pytest.raises(InvalidStatus, match="403"), connect(running.url, origin=Origin("http://example.org")):
            pass


def test_messages_beyond_the_rate_are_refused_with_the_time_to_wait(table: Policy):
    with served(table, max_rate_hz=0.01) as running, Client(running.url) as client, Client(running.url) as other:
        client.reset()
        with pytest.raises(ServerError, match=r"rate: more than 0.01 messages a second .* in \d+ ms"):
            client.reset()
        other.reset()


def test_a_token_is_required_except_for_healthz(table: Policy):
    with served(table, token=TOKEN) as running:
        for token in ("", "0123456789abcdeF", TOKEN + "0"):
            found = "another token" if token else "no token"
            with pytest.raises(ConnectionError, match=rf"401 found {found}, .*Client\(token=\.\.\.\).*AGENT_JAX_TOKEN"):
                Client(running.url, token=token)
            assert http_get(running.http + "/metrics", token)[0] == 401
        assert http_get(running.http + "/metrics", TOKEN)[0] == 200
        assert http_get(running.http + "/healthz") == (200, "ready\n")
        with Client(running.url, token=TOKEN) as client:
            client.act(make_image(), TEXT, STATE)
        headers = {"Authorization": f"Api-Key {TOKEN}"}  # as openpi's client sends it
        with connect(running.url, additional_headers=headers) as connection:
            assert wire.unpack(connection.recv())["protocol"] == wire.PROTOCOL  # pyright: ignore[reportArgumentType]


def test_actions_beyond_the_limits_are_clamped_and_reported_or_refused(table: Policy):
    with limited(table, "clamp") as client:
        assert np.abs(client.act(make_image(), TEXT, STATE)["action"]).max() <= 0.0001
        assert client.clamped
    with limited(table, "refuse") as client, pytest.raises(ServerError, match="action_refused: beyond"):
        client.act(make_image(), TEXT, STATE)


@contextlib.contextmanager
def limited(table: Policy, beyond: Any) -> Iterator[Client]:
    bounds = {"action": (np.full(2, -0.0001, np.float32), np.full(2, 0.0001, np.float32))}
    with served(table, limits=ActionLimits(LANGUAGE_TABLE, bounds, beyond)) as running, Client(running.url) as client:
        yield client


class Scripted:
    """Wraps a policy so that it waits, fails or returns invalid actions."""

    def __init__(self, policy: Policy) -> None:
        self._policy, self.domain, self.domains = policy, policy.domain, policy.domains
        self.gate, self.warm = threading.Event(), threading.Event()
        self.gate.set()
        self.warm.set()
        self.entered = threading.Event()
        self.bad: np.ndarray | None = None

    def warm_up(self, batch_sizes: Any) -> None:
        assert self.warm.wait(60)

    def prepare(self, *observation: Any) -> Any:
        if observation[1] == "break":
            raise KeyError("a bug")
        return observation[1], self._policy.prepare(*observation)

    def step(self, prepared: Any, env_ids: Any) -> Any:
        self.entered.set()
        assert self.gate.wait(60)
        if any(text == "fail" for text, _ in prepared):
            raise RuntimeError("secret")
        actions = self._policy.step([inner for _, inner in prepared], env_ids)
        return actions if self.bad is None else [{"action": self.bad}] * len(actions)

    def reset(self, env_ids: Any) -> None:
        self._policy.reset(env_ids)

    def forget(self, env_ids: Any) -> None:
        self._policy.forget(env_ids)


def test_a_nan_is_refused_as_an_action(table: Policy):
    policy = Scripted(table)
    policy.bad = np.float32([0.01, np.nan])
    with served(policy) as running, Client(running.url) as client, \
            pytest.raises(ServerError, match="action_refused: .* is not finite"):
        client.act(make_image(), TEXT, STATE)


def test_a_policy_that_fails_for_one_robot_of_a_batch_answers_the_others(table: Policy):
    policy = Scripted(table)
    with served(policy, max_wait_ms=200) as running, Client(running.url) as one, Client(running.url) as other:
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(other.act(make_image(), TEXT, STATE)))
        policy.gate.clear()
        thread.start()
        threading.Timer(0.1, policy.gate.set).start()
        with pytest.raises(ServerError, match="internal: the policy failed") as raised:
            one.act(make_image(), "fail", STATE)
        thread.join()
        assert len(answers) == 1
        assert "secret" not in str(raised.value)
        with pytest.raises(ServerError, match="internal: the message"):
            one.act(make_image(), "break", STATE)
        np.testing.assert_array_equal(one.act(make_image(), TEXT, STATE)["action"], answers[0]["action"])


def test_healthz_fails_until_the_policy_is_compiled_and_clients_wait(table: Policy):
    policy = Scripted(table)
    policy.warm.clear()
    with served(policy, phase="warming up") as running:
        assert http_get(running.http + "/healthz") == (503, "warming up\n")
        with pytest.raises(ConnectionError, match="no server within 0.3 s .503 warming up"):
            Client(running.url, connect_timeout=0.3)
        threading.Timer(0.2, policy.warm.set).start()
        with Client(running.url) as client:
            client.act(make_image(), TEXT, STATE)
        assert http_get(running.http + "/healthz") == (200, "ready\n")


def test_after_stop_it_answers_pending_requests_and_refuses_new_ones(table: Policy):
    policy, answers = Scripted(table), []
    with served(policy) as running, Client(running.url) as client, Client(running.url) as idle:
        policy.gate.clear()
        thread = threading.Thread(target=lambda: answers.append(client.act(make_image(), TEXT, STATE)))
        thread.start()
        assert policy.entered.wait(30)
        running.stop()
        eventually(lambda: http_get(running.http + "/healthz") == (503, "draining\n"))
        with pytest.raises(ServerError, match="draining: the server shuts down"):
            idle.act(make_image(), TEXT, STATE)
        policy.gate.set()
        thread.join()
        assert len(answers) == 1
    assert running.server.robots == set()


def test_several_cameras_are_sent_by_name_or_in_order():
    domain = babyai_domain(cameras=CAMERAS, window=2, max_text=32)
    front, wrist = make_image(3), make_image(4)
    with served(tiny_policy(domain), max_batch=1) as running, Client(running.url) as one, Client(running.url) as other:
        by_name = one.act({"wrist": wrist, "front": front}, TEXT)
        assert by_name == other.act([front, wrist], TEXT)
        with pytest.raises(BadRequestError, match="sees through front, wrist"):
            one.act({"front": front}, TEXT)
