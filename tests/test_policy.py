"""Acting: the same numbers as in training, whatever acts beside it, and legal actions only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from data_stores import CAMERAS, babyai_domain, clip_domain, language_table_domain
from packed_rows import random_params
from small_runs import Trained, differing, straight_run

from agent_jax.actions import MINECRAFT
from agent_jax.config import Config, LanguageConfig, MaeConfig, ModelConfig, VisionConfig
from agent_jax.data.domains import Domain
from agent_jax.data.layout import Step, Window, lay_out, row_size, stack, window_need
from agent_jax.models.agent import Agent
from agent_jax.policy import Policy
from agent_jax.restart import restore_acting_parameters

PATCHES = 4
TEXT = "push the red block left"
STATE = {"effector_target_translation": np.float32([0.3, 0.1]), "effector_translation": np.float32([0.2, 0.0])}


def make_config(domain: Domain) -> Config:
    return Config(model=ModelConfig(
        vision=VisionConfig(image_size=16, patch_size=8, width=16, depth=1, heads=2, mlp_width=32),
        language=LanguageConfig(width=16, depth=1, heads=2, mlp_width=32, positions=512,
                                vocabulary_size=domain.vocabulary.size),
        mae=MaeConfig(width=16, depth=1, heads=2, mlp_width=32)))


def make_policy(domain: Domain, temperature: float = 0.0) -> Policy:
    config = make_config(domain)
    return Policy(config, random_params(config.model), domain, temperature=temperature, seed=5)


def make_images(number: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (number, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def table() -> Policy:
    """Greedy, in a domain with a state and actions of several ids; windows of 4 steps."""
    return make_policy(language_table_domain())


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return straight_run(tmp_path_factory.getbasetemp())


def listen(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The logits among which the policy chooses from now on, -inf where they are illegal."""
    heard: list[np.ndarray] = []
    choose = policy._choose

    def recording(logits_A: np.ndarray) -> int:
        heard.append(logits_A)
        return choose(logits_A)

    monkeypatch.setattr(policy, "_choose", recording)
    return heard


def act(policy: Policy, image: np.ndarray, env_id: Any = 0) -> np.ndarray:
    """The ids of the action of one environment."""
    states = [STATE] if policy.domain.state else None
    return policy.domain.spec.encode(policy.act([image], [TEXT], [env_id], states)[0])


def training_logits(domain: Domain, windows: Sequence[Window]) -> list[np.ndarray]:
    """The logits (L, K) of the ids of the last action of each window, in the layout of training."""
    config = make_config(domain)
    size = row_size([domain], 1 + PATCHES, domain.images)
    batch = stack([lay_out((window,), size, 1 + PATCHES, PATCHES) for window in windows])
    output: Any = jax.jit(Agent(config.model).apply)({"params": random_params(config.model)}, batch)
    ends = [window_need(window, 1 + PATCHES).targets for window in windows]
    return [np.asarray(output.logits_BTK[row, end - len(window.steps[-1].action_ids) : end])
            for row, (window, end) in enumerate(zip(windows, ends, strict=True))]


def test_greedy_actions_are_the_best_legal_ids_of_the_training_layout_beyond_windows_and_after_resets(
        table: Policy, monkeypatch: pytest.MonkeyPatch):
    domain, automaton = table.domain, table.domain.spec.automaton
    heard = listen(table, monkeypatch)
    windows, history = [], []
    for time, image in enumerate(make_images(9)):
        if time in (0, 6):
            table.reset([0])
            history = []
        ids = act(table, image)
        history = [*history, Step((image,), domain.state.encode(STATE), ids)][-domain.window :]
        windows.append(Window(domain.index, domain.text_ids(TEXT), tuple(history), seed=0))
    asked = iter(heard)
    for window, logits_LK in zip(windows, training_logits(domain, windows), strict=True):
        state = automaton.start
        for token, logits_K in zip(window.steps[-1].action_ids, logits_LK, strict=True):
            legal = automaton.legal(state)
            if len(legal) > 1:
                assert token == legal[np.argmax(logits_K[legal])]
                logits_A = next(asked)
                np.testing.assert_array_equal(automaton.ids_A[np.isfinite(logits_A)], legal)
                np.testing.assert_allclose(logits_A[np.isfinite(logits_A)], logits_K[legal], rtol=0, atol=1e-5)
            state = automaton.advance(state, int(token))
    assert next(asked, None) is None
    assert len({tuple(window.steps[-1].action_ids) for window in windows}) > 1  # images matter


def test_what_acts_beside_an_episode_and_in_which_order_changes_nothing(table: Policy, monkeypatch: pytest.MonkeyPatch):
    images_TN = make_images(15).reshape(3, 5, 16, 16, 3)
    heard = listen(table, monkeypatch)

    def episodes(order: Sequence[int]) -> dict[int, list[tuple[int, ...]]]:
        """All together, in this order, unlike the order of their ids."""
        table.reset(order)
        ids: dict[int, list[tuple[int, ...]]] = {env_id: [] for env_id in order}
        for images in images_TN:
            actions = table.act(images[list(order)], [f"{TEXT} {i}" for i in order], order, [STATE] * len(order))
            for env_id, action in zip(order, actions, strict=True):
                ids[env_id].append(tuple(table.domain.spec.encode(action)))
        return ids

    together = episodes(range(5))
    heard_together = list(heard)
    assert len({tuple(ids) for ids in together.values()}) > 1
    assert episodes([3, 0, 4, 2, 1]) == together
    for env_id in (0, 3):
        heard.clear()
        assert episodes([env_id])[env_id] == together[env_id]
        # A bucket of one row, against rows of a bucket of eight of which three are padding.
        for alone, beside in zip(heard, heard_together[env_id::5], strict=True):
            np.testing.assert_allclose(alone, beside, rtol=0, atol=1e-6)


@pytest.mark.parametrize("spec", [None, MINECRAFT], ids=["table", "minecraft"])
def test_an_untrained_agent_acts_legally(spec: Any):
    domain = language_table_domain()
    if spec is not None:
        domain = language_table_domain(spec=spec.bind(domain.vocabulary), state=None, window=2)
    policy = make_policy(domain, temperature=2.0)
    said = set()
    for images in make_images(6).reshape(2, 3, 16, 16, 3):
        states = [STATE] * 3 if domain.state else None
        for action in policy.act(images, [TEXT] * 3, ["a", "b", "c"], states):
            ids = domain.spec.encode(action)
            assert domain.spec.automaton.accepts(ids)
            said.add(tuple(ids))
    assert len(said) > 1


def test_sampling_draws_legal_ids_by_their_softmax_and_greedy_always_the_best(monkeypatch: pytest.MonkeyPatch):
    greedy = make_policy(babyai_domain(max_text=32))
    sampled = greedy.with_temperature(1.5, seed=1)
    heard = listen(sampled, monkeypatch)
    image, number = make_images(1)[0], 320
    actions = sampled.act([image] * number, [TEXT] * number, range(number))
    drawn = np.bincount([int(action["action"]) for action in actions], minlength=7)
    logits = heard[0][np.isfinite(heard[0])] / 1.5
    assert len(logits) == 7  # one of BabyAI's actions, and nothing else
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert 0.1 < expected.max() < 0.95  # neither certain nor uniform
    assert np.all(np.abs(drawn / number - expected) < 4 * np.sqrt(expected * (1 - expected) / number) + 1 / number)
    assert {int(greedy.act([image], [TEXT], [n])[0]["action"]) for n in range(3)} == {int(np.argmax(logits))}


def test_a_policy_of_another_temperature_has_its_own_histories(table: Policy):
    first, second, other = make_images(3, seed=7)
    table.reset([0])
    act(table, first)
    expected = act(table, second)
    table.reset([0])
    act(table, first)
    twin = table.with_temperature(1.0)
    act(twin, other)
    act(twin, other)
    np.testing.assert_array_equal(act(table, second), expected)
    assert (table.temperature, twin.temperature) == (0.0, 1.0)
    assert len(twin._episodes[0].steps) == len(table._episodes[0].steps) == 2


def test_several_cameras_are_laid_out_as_in_training_whether_they_come_by_name_or_in_order(
        monkeypatch: pytest.MonkeyPatch):
    domain = babyai_domain(cameras=CAMERAS, window=2, max_text=32)
    policy = make_policy(domain)
    heard = listen(policy, monkeypatch)
    pairs = make_images(6).reshape(3, 2, 16, 16, 3)
    history, windows = [], []
    for front, wrist in pairs:
        ids = domain.spec.encode(policy.act([{"wrist": wrist, "front": front}], [TEXT], [0])[0])
        assert domain.spec.encode(policy.act([(front, wrist)], [TEXT], [1])[0]).tolist() == ids.tolist()
        history = [*history, Step((front, wrist), np.zeros(0, np.int32), ids)][-2:]
        windows.append(Window(domain.index, domain.text_ids(TEXT), tuple(history), seed=0))
    for window, by_name, in_order, logits_LK in zip(windows, heard[::2], heard[1::2], training_logits(domain, windows),
                                                    strict=True):
        legal = np.isfinite(by_name)
        np.testing.assert_array_equal(by_name, in_order)
        chosen = logits_LK[1][domain.spec.automaton.ids_A[legal]]  # of the id between the delimiters
        np.testing.assert_allclose(by_name[legal], chosen, rtol=0, atol=1e-5)
        assert len(window.steps[-1].frames) == 2


@pytest.mark.parametrize("images", [make_images(1)[0], {"front": make_images(1)[0]}, (make_images(1)[0],),
                                    {name: make_images(1)[0] for name in ("front", "wrist", "back")}],
                         ids=["image", "mapping", "tuple", "one too many"])
def test_a_missing_or_an_unknown_camera_is_refused_with_the_names(images: Any):
    policy = make_policy(babyai_domain(cameras=CAMERAS, max_text=32))
    with pytest.raises(ValueError, match=r"domain 'babyai' sees through front, wrist; found .* expected an image of"):
        policy.act([images], [TEXT], [0])


@pytest.mark.parametrize("layout", ["answer", "label"])
def test_a_domain_without_actions_is_nothing_to_act_with(layout: str):
    with pytest.raises(ValueError, match=f"domain 'clips' has the layout '{layout}', which predicts no actions"):
        make_policy(clip_domain(layout))


def test_mistaken_calls_are_answered_with_what_was_found(table: Policy):
    image = make_images(1)[0]
    with pytest.raises(ValueError, match=r"found 1 images, 2 instructions and 2 env_ids and 2 states"):
        table.act([image], [TEXT] * 2, [0, 1], [STATE] * 2)
    with pytest.raises(ValueError, match=r"env_ids=\[4, 4\] hold an id twice"):
        table.act([image] * 2, [TEXT] * 2, [4, 4], [STATE] * 2)
    with pytest.raises(ValueError, match=r"domain 'table' needs a state for each environment"):
        table.act([image], [TEXT], [0])
    with pytest.raises(ValueError, match=r"expected at most max_text=80"):
        table.act([image], ["x" * 100], [0], [STATE])
    with pytest.raises(ValueError, match=r"domain 'babyai' has no state"):
        make_policy(babyai_domain(max_text=32)).act([image], [TEXT], [0], [STATE])
    with pytest.raises(ValueError, match=r"temperature=-1"):
        make_policy(language_table_domain(), temperature=-1)


def test_a_policy_is_loaded_from_a_workdir_its_checkpoints_or_one_step(straight: Trained):
    checkpoints = straight.workdir / "checkpoints"
    expected = {step: restore_acting_parameters(checkpoints, straight.run.config, step) for step in (10, 20)}
    assert list(differing(expected[10], expected[20]))
    for path, step, loaded in ((straight.workdir, None, 20), (checkpoints, None, 20), (checkpoints / "10", None, 10),
                               (straight.workdir, 10, 10)):
        policy = Policy.load(path, step=step, domain="tiles")
        assert list(differing(policy._params, expected[loaded])) == []
    action = policy.act(make_images(1), ["go to red"], [0])[0]
    assert 0 <= int(action["action"]) < 7


def test_a_missing_checkpoint_and_an_unknown_domain_are_refused(straight: Trained, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        Policy.load(tmp_path)
    with pytest.raises(ValueError, match=r"domain='table': .* was trained on tiles; name one of them"):
        Policy.load(straight.workdir, domain="table")
