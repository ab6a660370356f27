"""An agent and a person act in one episode; what the person did is a data set that trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent_jax.data.pipeline.windows import Windows
from agent_jax.data.store.store import open_store
from agent_jax.demo.agents import agents_of
from agent_jax.demo.session import Session
from agent_jax.evaluate.checkpoints import TrainedRun
from agent_jax.policy import Policy

LEFT, RIGHT, FORWARD, DONE = {"action": 0}, {"action": 1}, {"action": 2}, {"action": 6}


@pytest.fixture
def session(workdir: Path, tmp_path: Path) -> Any:
    made = Session(TrainedRun.load(workdir), "babyai", tmp_path / "demonstrations")
    yield made
    made.close()


def test_the_agent_acts_as_its_policy_does_also_after_a_person_acted(session: Session, workdir: Path):
    frame = session.begin("GoToObj", 7)
    assert frame["reads"] in frame["instructions"]
    policy = Policy.load(workdir)
    # The same episode with the policy alone: agent, person, agent, agent.
    pool = session._pool.module.make("GoToObj", 56)
    observation, _ = pool.reset(seed=7)
    policy.reset([0])
    spec = policy.domain.spec
    assert spec is not None
    for step in range(4):
        prepared = policy.prepare(observation["rgb"], pool.instruction)
        if step == 1:
            action: Any = {"action": np.array(0)}
            policy.follow([prepared], [0], [spec.encode(action)])
            frame = session.person_step(LEFT)
            assert frame["seen"]["who"] == "person"
        else:
            (action,) = policy.step([prepared], [0])
            frame = session.agent_step(attention=True, surprise=True)
            assert len(frame["seen"]["images"]) == 1
            assert frame["seen"]["surprise"] > 0
        (choice,) = frame["seen"]["choices"]
        assert sum(one["probability"] for one in choice) == pytest.approx(1, abs=1e-5)
        taken = next(one for one in choice if one["taken"])
        assert taken["probability"] == pytest.approx(policy.probability(0), abs=1e-6)
        observation, *_ = pool.step(action)
    assert frame["step"] == 4
    pool.close()


def test_a_persons_steps_are_learned_from_and_the_agents_are_history(session: Session, tmp_path: Path, workdir: Path):
    session.begin("GoToObj", 3)
    session.agent_step()
    session.person_step(LEFT)
    session.person_step(RIGHT)
    first = session.store()
    assert session.store() == ""  # nothing new
    session.begin("GoToObj", 4, "go to the moon")
    session.person_step(FORWARD)
    frame = session.begin("GoToObj", 5)  # stores the one before
    assert frame["demonstrations"] == {"episodes": 2, "steps": 3}
    assert not Path(first).exists()
    assert [path.name for path in (tmp_path / "demonstrations").iterdir()] == ["0002"]
    store = open_store(frame["saved"])
    domain = TrainedRun.load(workdir).domain()
    windows = Windows(domain, store, "train")
    read = [windows.read(number, 0) for number in range(len(windows))]
    assert [step.action_weight for window in read for step in window.steps] == [0.0, 1.0, 1.0, 1.0]
    last = int(np.flatnonzero(windows.record == 1)[0])
    assert windows.texts(last)[0] == "go to the moon"
    assert json.loads((Path(frame["saved"]) / "agent_jax.json").read_text())["demo"]["episodes"] == 2


def test_an_instruction_that_was_typed_is_read_and_its_success_is_told(session: Session):
    frame = session.begin("GoToLocal", 11)
    own, other = frame["instructions"]  # a paraphrase is longer than this agent reads
    assert own == frame["reads"]
    frame = session.begin("GoToLocal", 11, other)
    assert frame["reads"] == other != frame["instruction"]
    assert session.agent_step()["success"] is False
    session.begin("GoToLocal", 11, "fly to the moon")
    assert session.agent_step()["success"] is None  # the environment cannot tell


def test_wrong_requests_are_refused_and_change_nothing(session: Session):
    with pytest.raises(ValueError, match="begin one"):
        session.agent_step()
    session.begin("GoToObj", 1)
    with pytest.raises(ValueError, match="tokens"):
        session.begin("GoToObj", 1, "go to " + "the red ball " * 50)
    with pytest.raises(ValueError, match="keys action"):
        session.person_step({"other": 1})
    with pytest.raises(ValueError, match="action"):
        session.person_step({"action": 99})
    with pytest.raises(ValueError, match="level: found 'GoToMoon'"):
        session.begin("GoToMoon", 1)
    assert session.frame()["step"] == 0  # pyright: ignore[reportOptionalSubscript]
    assert session.store() == ""


def test_agents_are_those_with_a_simulator(workdir: Path):
    (agent,) = agents_of(str(workdir))
    assert (agent.domain, agent.environment) == ("babyai", "babyai")
    with pytest.raises(ValueError, match="domain='other'"):
        agents_of(str(workdir), "babyai", "other")
