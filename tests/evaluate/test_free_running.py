from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from recorded_babyai import recorded_store, tiny_agent
from tiny_checkpoints import make_checkpoint

from agent_jax.data.images import prepare_image
from agent_jax.evaluate.checkpoints import TrainedRun
from agent_jax.evaluate.offline import evaluate_offline

pytest.importorskip("minigrid")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "free_running"


def test_in_windows_of_one_step_free_running_equals_teacher_forcing(base: Path, tmp_path: Path) -> None:
    fields = {"max_text": 40, "window": 1, "stride": 1}
    trained = TrainedRun.load(make_checkpoint(tmp_path / "agent", ("babyai",), domain_fields=fields).path)
    store = recorded_store(base / "store")
    found = evaluate_offline(trained, trained.params(), trained.domain(), data=str(store.directory),
                             policy=trained.policy())
    assert found.free_running is not None
    assert found.choices is not None
    assert found.free_running.actions == found.choices.actions
    assert 0 < found.free_running.exact < 1
    assert found.free_running.exact == found.choices.exact
    assert set(found.free_running.intervals) == {"exact", "bleu4"}


def test_several_actions_per_image_are_decoded_from_every_second_image(base: Path, tmp_path: Path) -> None:
    fields = {"max_text": 40, "window": 4, "stride": 4, "actions_per_image": 2}
    trained = TrainedRun.load(make_checkpoint(tmp_path / "agent", ("babyai",), domain_fields=fields).path)
    store = recorded_store(base / "store")
    found = evaluate_offline(trained, trained.params(), trained.domain(), data=str(store.directory),
                             policy=trained.policy())
    policy, equal = trained.policy(), []
    for episode in store.split("test"):
        images = episode.values(trained.domain().cameras[0], 0, episode.steps)
        actions = episode.values("steps/action", 0, episode.steps)
        weights = episode.values("steps/action_weight", 0, episode.steps)
        for t in range(0, episode.steps, 2):
            if t % 4 == 0:
                policy.reset([0])
            [decoded] = policy.act([prepare_image(images[t], 0)], [episode.texts("instruction")[t]], [0])
            equal += [int(one["action"]) == int(actions[t + i]) for i, one in enumerate(decoded)
                      if t + i < episode.steps and weights[t + i]]
    assert found.free_running is not None
    assert found.free_running.actions == len(equal)
    assert found.free_running.exact == pytest.approx(np.mean(equal))


def test_later_actions_follow_the_policys_own_earlier_ones(base: Path) -> None:
    trained, store = TrainedRun.load(tiny_agent(base / "agent").path), recorded_store(base / "store")
    found = evaluate_offline(trained, trained.params(), trained.domain(), data=str(store.directory),
                             policy=trained.policy())
    policy, window, equal = trained.policy(), trained.domain().window, []
    for episode in store.split("test"):
        (camera,) = trained.domain().cameras
        actions = episode.values("steps/action", 0, episode.steps)
        weights = episode.values("steps/action_weight", 0, episode.steps)
        for t, image in enumerate(episode.values(camera, 0, episode.steps)):
            if t % window == 0:
                policy.reset([0])
            prepared = policy.prepare(prepare_image(image, 0), episode.texts("instruction")[t])
            (action,) = policy.step([prepared], [0])
            if weights[t]:
                equal.append(int(action["action"]) == int(actions[t]))
    assert found.free_running is not None
    assert found.free_running.actions == len(equal)
    assert found.free_running.exact == pytest.approx(np.mean(equal))
