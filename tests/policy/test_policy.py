"""Acting: the same numbers as in training, whatever acts beside it, and legal actions only."""

from __future__ import annotations

import dataclasses
import functools
import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from data_stores import CAMERAS, babyai_domain, clip_domain, game_domain, language_table_domain
from packed_rows import random_params
from PIL import Image
from small_runs import Trained, differing, straight_run
from uncached import Uncached

from agent_jax.actions import BLEEDING_EDGE, BoundSpec
from agent_jax.checkpoints.restore import restore_acting_parameters
from agent_jax.config import Config, LanguageConfig, MaeConfig, ModelConfig, VisionConfig
from agent_jax.data.pipeline.domains import Domain
from agent_jax.data.pipeline.layout import Step, Window
from agent_jax.models.transformer import layers_apart
from agent_jax.policy import Policy
from agent_jax.policy.policy import History

TEXT = "push the red block left"
STATE = {"effector_target_translation": np.float32([0.3, 0.1]), "effector_translation": np.float32([0.2, 0.0])}
VIDEO = language_table_domain().vocabulary

# Every kind of domain that acts: with a state, with ids in any number, with sticks, clips, several cameras, positions
# that do not depend on the text.
DOMAINS: dict[str, Domain] = {
    "babyai": babyai_domain(max_text=32, window=3),
    "table": language_table_domain(max_text=32, window=2),
    "minecraft": game_domain(max_text=32, window=2),
    "edge": babyai_domain(spec=BoundSpec(BLEEDING_EDGE, VIDEO), max_text=32, window=2, fixed_positions=True),
    "clips": babyai_domain(cameras=CAMERAS, max_text=32, window=3, video=True, fixed_positions=True),
    "cameras": language_table_domain(cameras=CAMERAS, max_text=32, window=2),
    "two actions": language_table_domain(max_text=32, window=4, actions_per_image=2),
    "buttons of three steps": game_domain(max_text=32, window=6, actions_per_image=3),
    "clips of two actions": babyai_domain(cameras=CAMERAS, max_text=32, window=6, video=True, actions_per_image=2),
}

SLOW_DOMAINS = ("edge", "cameras", "minecraft", "two actions", "buttons of three steps", "clips of two actions")

HISTORIES: list[tuple[History, bool]] = [("sliding", False), ("sliding", True), ("flushed", False)]  # and read ahead


def make_config(domain: Domain, dtype: Literal["float32", "bfloat16"] = "float32") -> Config:
    # A model of videos, so that images one by one are read in it as well.
    return Config(model=ModelConfig(
        dtype=dtype,
        vision=VisionConfig(image_size=16, patch_size=8, width=16, depth=1, heads=2, mlp_width=32,
                            temporal_attention=True),
        language=LanguageConfig(width=16, depth=2, heads=2, mlp_width=32, positions=256,
                                vocabulary_size=domain.vocabulary.size),
        mae=MaeConfig(width=16, depth=1, heads=2, mlp_width=32)))


def new_policy(domain: Domain, temperature: float = 0.0, history: History = "sliding", flush_every: int = 0,
               *, ahead: bool = False) -> Policy:
    config = make_config(domain)
    return Policy(config, random_params(config.model), domain, temperature=temperature, seed=5, history=history,
                  flush_every=flush_every, ahead=ahead)


@functools.cache
def _compiled(name: str, history: History, flush_every: int, ahead: bool) -> Policy:
    return new_policy(DOMAINS[name], history=history, flush_every=flush_every, ahead=ahead)


def make_policy(name: str, temperature: float = 0.0, history: History = "sliding", flush_every: int = 0,
                *, ahead: bool = False) -> Policy:
    """A policy with histories of its own; what it compiles is shared by all of the same domain and history."""
    return _compiled(name, history, flush_every, ahead).with_temperature(temperature, seed=5)


def make_images(number: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (number, 16, 16, 3), dtype=np.uint8)


def observe(policy: Policy, seed: int, text: str = TEXT) -> Any:
    """A prepared observation of random pixels and state."""
    rng = np.random.default_rng(seed)
    names = policy.domain.camera_names
    images = rng.integers(0, 256, (len(names), 16, 16, 3), np.uint8)
    state = {key: rng.uniform(-0.2, 0.5, 2).astype(np.float32) for key in STATE} if policy.domain.state else None
    return policy.prepare(dict(zip(names, images, strict=True)), text, state)


def random_action(domain: Domain, rng: np.random.Generator) -> np.ndarray:
    """Ids of a random walk through the automaton: the actions that follow an image."""
    assert domain.spec is not None
    automaton = domain.spec.automaton.repeated(domain.actions_per_image)
    ids, state = [], automaton.start
    while state != automaton.accept:
        ids.append(int(rng.choice(automaton.legal(state))))
        state = automaton.advance(state, ids[-1])
    return np.asarray(ids, np.int32)


@pytest.fixture(scope="module")
def table() -> Policy:
    """Greedy, in a domain with a state and actions of several ids."""
    return make_policy("table")


def test_images_of_other_libraries_are_prepared_like_arrays(table: Policy):
    (pixels,) = make_images(1)
    expected = table.prepare(pixels, TEXT, STATE).frames[0]
    for image in (Image.fromarray(pixels), torch.from_numpy(pixels), jnp.asarray(pixels)):
        for images in (image, [image], {"rgb": image}):
            np.testing.assert_array_equal(table.prepare(images, TEXT, STATE).frames[0], expected)
    with pytest.raises(ValueError, match=r"camera 'rgb' shows float32\[3, 16, 16\].*np.transpose\(image, \(1, 2, 0"):
        table.prepare(torch.from_numpy(pixels).permute(2, 0, 1) / 255, TEXT, STATE)
    for other, advice in ((pixels.tolist(), r"np.asarray\(image, np.uint8"), (b"\xff\xd8", "PIL.Image.open")):
        with pytest.raises(ValueError, match=advice):
            table.prepare(other, TEXT, STATE)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="camera 'rgb': found an image of mode L"):
        table.prepare(Image.fromarray(pixels).convert("L"), TEXT, STATE)


@pytest.mark.parametrize(("images", "texts", "env_ids", "states", "message"), [
    ("one", TEXT, 0, STATE, r"found env_ids=0, .*: act\(\[image\], \[instruction\], \[0\]\)"),
    ("one", TEXT, "robot 0", STATE, r"found env_ids='robot 0', .*\['robot 0'\]\)"),
    ("one", [TEXT], [0], [STATE], "found one image, a ndarray"),
    ("pillow", [TEXT], [0], [STATE], "found one image, a Image"),
    ("cameras", [TEXT], [0], [STATE], "found one image, a dict"),
    ("list", TEXT, [0], [STATE], "found one instruction, a str"),
    ("list", [TEXT], [0], STATE, "found one state, a dict"),
])
def test_single_values_are_refused_with_the_call_that_is_meant(
        table: Policy, images: str, texts: Any, env_ids: Any, states: Any, message: str):
    (pixels,) = make_images(1)
    given: dict[str, Any] = {"one": pixels, "pillow": Image.fromarray(pixels), "cameras": {"rgb": pixels},
                             "list": [pixels]}
    with pytest.raises(ValueError, match=f"act: {message}"):
        table.act(given[images], texts, env_ids, states)


def test_one_id_that_is_a_text_is_not_taken_for_its_letters(table: Policy):
    for call in (table.reset, table.forget):
        with pytest.raises(ValueError, match=rf"{call.__name__}\(\['ab'\]\)"):
            call("ab")
        with pytest.raises(ValueError, match=rf"{call.__name__}\(\[0\]\)"):
            call(0)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return straight_run(tmp_path_factory.getbasetemp())


@functools.cache
def uncached_of(name: str) -> Uncached:
    """The whole row without a cache, compiled once for all histories."""
    return Uncached(make_config(DOMAINS[name]), DOMAINS[name])


@pytest.mark.parametrize(("history", "ahead"), HISTORIES)
@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.slow) if name in SLOW_DOMAINS else name for name in DOMAINS])
def test_cached_logits_are_those_of_the_uncached_row_across_windows_flushes_resets_and_instructions(
        name: str, history: History, ahead: bool):
    domain = DOMAINS[name]
    policy, uncached = make_policy(name, history=history, ahead=ahead), uncached_of(name)
    assert domain.spec is not None
    automaton, rng = domain.spec.automaton.repeated(domain.actions_per_image), np.random.default_rng(1)
    images = domain.window // domain.actions_per_image
    texts = {0: TEXT, 1: "go", 2: "to the left"}
    rows: dict[int, list[Step]] = {env_id: [] for env_id in texts}
    asked: list[Window] = []
    heard: list[np.ndarray] = []
    for time in range(2 * images + 2):
        acting = [2, 0, 1]
        for env_id, begun in ((1, 1), (2, images + 1)):  # so that histories differ in length
            if time == begun:
                policy.reset([env_id])
                rows[env_id] = []
        changed = time == images + 2  # in the middle of an episode
        if changed:
            texts[0] = "and back"
        seen = {env_id: observe(policy, 10 * time + env_id, texts[env_id]) for env_id in acting}
        ids = [random_action(domain, rng) for _ in acting]
        found = policy.follow([seen[env_id] for env_id in acting], acting, ids)
        for env_id, action, logits_JA in zip(acting, ids, found, strict=True):
            full = len(rows[env_id]) >= images or (history == "flushed" and changed and env_id == 0)
            past = rows[env_id][1:] if full and history == "sliding" else [] if full else rows[env_id]
            state, choices = automaton.start, iter(logits_JA)
            for place, token in enumerate(action):
                if len(automaton.legal(state)) > 1:
                    step = Step(seen[env_id].frames, seen[env_id].state_ids, action[:place])
                    asked.append(Window(domain.index, seen[env_id].text_ids, (*past, step), seed=0, video=domain.video,
                                        first_position=domain.first_position))
                    heard.append(np.where(automaton.next_QA[state] >= 0, next(choices), np.nan))
                state = automaton.advance(state, int(token))
            assert next(choices, None) is None
            rows[env_id] = [*past, Step(seen[env_id].frames, seen[env_id].state_ids, action)]
    params = random_params(make_config(domain).model)
    for first in range(0, len(asked), 32):
        windows = asked[first : first + 32]
        windows += windows[-1:] * (32 - len(windows))
        for cached_A, uncached_A in zip(heard[first : first + 32], uncached.logits(params, windows), strict=False):
            legal = ~np.isnan(cached_A)
            np.testing.assert_allclose(cached_A[legal], uncached_A[legal], rtol=0, atol=1e-4)
            second, best = np.sort(uncached_A[legal])[-2:]
            assert best - second <= 1e-3 or np.argmax(cached_A[legal]) == np.argmax(uncached_A[legal])


@pytest.mark.parametrize(("history", "ahead"), [
    HISTORIES[0], *(pytest.param(*each, marks=pytest.mark.slow) for each in HISTORIES[1:])])
def test_logits_in_bfloat16_are_those_in_float32_to_rounding(history: History, ahead: bool):
    domain = DOMAINS["table"]
    exact = make_policy("table", history=history, ahead=ahead)
    config = make_config(domain, "bfloat16")
    rounded = Policy(config, random_params(config.model), domain, history=history, ahead=ahead)
    rng, rounding = np.random.default_rng(1), float(jnp.finfo(jnp.bfloat16).eps)
    for time in range(2 * domain.window + 1):
        seen, action = observe(exact, time), random_action(domain, rng)
        (found_JA,), (expected_JA,) = (policy.follow([seen], [0], [action]) for policy in (rounded, exact))
        legal_JA = np.isfinite(expected_JA)
        assert (np.isfinite(found_JA) == legal_JA).all()
        difference = np.abs(found_JA[legal_JA] - expected_JA[legal_JA]).max()
        assert 0 < difference < 10 * rounding * np.abs(expected_JA[legal_JA]).max()


def test_a_long_instruction_beside_a_history_that_grows_overwrites_nothing_of_it():
    domain = language_table_domain(max_text=64, window=4, state=None)
    beside = new_policy(domain, history="flushed")
    alone = beside.with_temperature(0.0)
    text, rng = "push the red block to the left of the blue one, then stop", np.random.default_rng(1)
    for time in range(domain.window):
        seen, action = observe(beside, time, text), random_action(domain, rng)
        beside.reset(["new"])
        found = beside.follow([seen, seen], ["old", "new"], [action, action])
        (expected,) = alone.follow([seen], ["old"], [action])
        np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-4)


def test_greedy_actions_are_the_best_legal_ids_and_forced_ids_are_not_asked_for(table: Policy):
    automaton = table.domain.spec.automaton
    followed = make_policy("table")
    said = []
    table.reset([0])
    for seed in range(6):
        seen = observe(table, seed)
        action = table.step([seen], [0])[0]
        ids = table.last_ids[0]
        np.testing.assert_array_equal(table.domain.spec.encode(action), ids)
        [logits_JA] = followed.follow([seen], [0], [ids])
        choices = iter(logits_JA)
        state = automaton.start
        for token in ids:
            if len(automaton.legal(state)) > 1:
                assert token == automaton.ids_A[np.argmax(next(choices))]
            state = automaton.advance(state, int(token))
        assert next(choices, None) is None
        said.append(tuple(ids))
    assert len(set(said)) > 1  # observations matter


def test_several_actions_are_decoded_one_after_another():
    policy = new_policy(dataclasses.replace(DOMAINS["two actions"], window=2))
    followed, spec = policy.with_temperature(0.0), policy.domain.spec
    assert spec is not None
    automaton, decoded = spec.automaton.repeated(2), set()
    for time in range(4):
        seen = observe(policy, time)
        [actions] = policy.step([seen], [0])
        ids = policy.last_ids[0]
        split = spec.automaton.split(ids)
        assert len(split) == policy.replan_every == 2
        assert automaton.accepts(ids)
        for action, one in zip(actions, split, strict=False):
            np.testing.assert_array_equal(spec.encode(action), one)
        [logits_JA] = followed.follow([seen], [0], [ids])
        choices = iter(logits_JA)
        for number, one in enumerate(split):
            odds = []
            for token in one[spec.choices(one) >= 0]:
                logits_A = next(choices)
                assert token == automaton.ids_A[np.argmax(logits_A)]
                odds.append(np.max(np.asarray(jax.nn.softmax(logits_A))))
            assert policy.probability(0, number) == pytest.approx(np.prod(odds), rel=1e-4)
        assert next(choices, None) is None
        decoded.add(tuple(ids))
    assert len(decoded) > 1


@pytest.mark.parametrize(("window", "replan_every", "ahead"), [
    (4, 2, False), (4, 1, False), *(pytest.param(6, 1, ahead, marks=pytest.mark.slow) for ahead in (False, True))])
def test_rows_have_all_actions_of_an_image_also_where_fewer_are_executed(window: int, replan_every: int, ahead: bool):
    domain = language_table_domain(max_text=32, window=window, actions_per_image=2)
    config, joined = make_config(domain), 2 // replan_every
    policy = Policy(config, random_params(config.model), domain, ahead=ahead, replan_every=replan_every)
    uncached, rng = Uncached(config, domain), np.random.default_rng(1)
    assert domain.spec is not None
    past: list[tuple[Any, np.ndarray]] = []
    for time in range(window + 1):
        seen = observe(policy, time)
        ids = random_action(dataclasses.replace(domain, actions_per_image=replan_every), rng)
        [[logits_A, *_]] = policy.follow([seen], [0], [ids])
        steps = []
        for first in range(len(past) % joined, len(past), joined):  # the oldest is left out where one alone is over
            (image, _), actions = past[first], [action for _, action in past[first : first + joined]]
            steps.append(Step(image.frames, image.state_ids, np.concatenate(actions)))
        row = (*steps[-(window // 2 - 1) :], Step(seen.frames, seen.state_ids, ids[:1]))
        [expected_A] = uncached.logits(random_params(config.model), [Window(domain.index, seen.text_ids, row, seed=0)])
        legal_A = np.isfinite(logits_A)
        np.testing.assert_allclose(logits_A[legal_A], expected_A[legal_A], rtol=0, atol=1e-4)
        past.append((seen, ids))
    assert len(policy.domain.spec.automaton.split(policy.last_ids[0])) == replan_every


def test_the_action_that_ends_the_episode_is_the_last_of_its_list():
    policy = make_policy("two actions")
    spec = policy.domain.spec
    assert spec is not None
    move, end = spec.encode({"action": np.float32([0.01, 0])}), spec.terminal_ids()
    for ids, kept in (((move, move), 2), ((move, end), 2), ((end, end), 1), ((end, move), 1)):
        actions = policy.check_acts("decode").decode(np.concatenate(ids))
        assert [spec.encode(action).tolist() for action in actions] == [one.tolist() for one in ids[:kept]]


@pytest.mark.parametrize(("fields", "message"), [
    ({"replan_every": 3}, r"replan_every=3 .* 4 actions per image .*use 1 or 2 or 4"),
    ({"replan_every": 8}, r"replan_every=8 .*use 1 or 2 or 4"),
    ({"replan_every": -2}, r"replan_every=-2 .*use 1 or 2 or 4"),
    ({"replan_every": 2, "history": "flushed"}, r"replan_every=2 is below actions_per_image=4 .*history='sliding'"),
    ({"flush_every": 6, "history": "flushed"}, r"flush_every=6 .*a multiple of actions_per_image=4"),
])
def test_what_does_not_fit_the_actions_of_an_image_is_refused_with_what_would(fields: dict[str, Any], message: str):
    domain = language_table_domain(max_text=32, window=8, actions_per_image=4)
    config = make_config(domain)
    with pytest.raises(ValueError, match=message):
        Policy(config, {}, domain, **fields)


def test_what_acts_beside_an_episode_and_in_which_order_changes_nothing():
    policy = make_policy("babyai", temperature=1.0)

    def episodes(order: Sequence[int]) -> dict[int, list[int]]:
        policy.forget(range(5))
        ids: dict[int, list[int]] = {env_id: [] for env_id in order}
        for time in range(3):
            policy.step([observe(policy, 10 * time + i, f"{TEXT} {i}") for i in order], order)
            for env_id in order:
                ids[env_id] += policy.last_ids[env_id].tolist()
        return ids

    together = episodes(range(5))
    assert len({tuple(ids) for ids in together.values()}) > 1
    assert episodes([3, 0, 4, 2, 1]) == together
    assert episodes([3])[3] == together[3]


@pytest.mark.parametrize("name", ["table", "minecraft", "edge"])
def test_actions_decode_whatever_the_parameters_are(name: str):
    domain = DOMAINS[name]
    assert domain.spec is not None
    said, compiled = set(), make_policy(name, temperature=2.0)
    for seed, scale in enumerate((1e-3, 1.0, 30.0)):
        params = random_params(make_config(domain).model, seed)
        policy = compiled.with_params(jax.tree.map(lambda leaf, scale=scale: scale * leaf, params))
        for time in range(2):
            policy.step([observe(policy, time + seed)] * 4, range(4))
            for ids in policy.last_ids.values():
                assert domain.spec.automaton.accepts(ids)
                said.add(tuple(ids.tolist()))
    assert len(said) > 4


def test_sampling_draws_legal_ids_by_their_softmax_and_repeats_itself_by_seed_environment_and_step():
    greedy = make_policy("babyai")
    seen, number = observe(greedy, 0), 320
    drawn = {}
    for seed in (1, 1, 2):
        sampled = greedy.with_temperature(1.5, seed=seed)
        actions = np.array([int(action["action"]) for action in sampled.step([seen] * number, range(number))])
        assert seed not in drawn or np.array_equal(drawn[seed], actions)
        drawn[seed] = actions
    assert not np.array_equal(drawn[1], drawn[2])
    ids = greedy.domain.spec.encode(greedy.step([seen], [0])[0])
    greedy.reset([0])
    [[logits_A]] = greedy.follow([seen], [0], [ids])
    logits = logits_A[np.isfinite(logits_A)] / 1.5
    assert len(logits) == 7  # one of BabyAI's actions, and nothing else
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert 0.1 < expected.max() < 0.95  # neither certain nor uniform
    share = np.bincount(drawn[1], minlength=7) / number
    assert np.all(np.abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / number) + 1 / number)
    assert greedy.last_ids[0][1] == greedy.domain.spec.automaton.ids_A[np.argmax(logits_A)]


def test_the_probability_of_an_action_is_that_of_its_choices_among_legal_ids(table: Policy):
    policy, other = table.with_temperature(1.0, seed=3), table.with_temperature(0.0)
    seen = [observe(policy, seed) for seed in (1, 2)]
    policy.step(seen, ["a", "b"])
    logits = other.follow(seen, ["a", "b"], [policy.last_ids["a"], policy.last_ids["b"]])
    spec = policy.domain.spec
    assert spec is not None
    for env_id, logits_JA in zip(("a", "b"), logits, strict=True):
        odds_JA = np.asarray(jax.nn.softmax(logits_JA, axis=1))
        columns = np.searchsorted(spec.automaton.ids_A, policy.last_ids[env_id])
        chosen = [column for column in columns if not np.isneginf(logits_JA[:, column]).all()]
        assert len(chosen) == len(odds_JA) == 2
        expected = np.prod([odds_A[column] for odds_A, column in zip(odds_JA, chosen, strict=True)])
        assert policy.probability(env_id) == pytest.approx(expected, rel=1e-5)
        assert 0 < policy.probability(env_id) < 1
    policy.forget(["a"])
    with pytest.raises(KeyError, match="a"):
        policy.probability("a")


def test_a_policy_of_another_temperature_has_its_own_histories(table: Policy):
    table.reset([0])
    table.step([observe(table, 1)], [0])
    twin = table.with_temperature(1.0)
    twin.step([observe(table, 2)], [0])
    twin.step([observe(table, 3)], [0])
    assert (table.temperature, twin.temperature) == (0.0, 1.0)
    assert (table._actor.episodes[0].time, twin._actor.episodes[0].time) == (1, 2)


def test_a_changed_instruction_flushes_and_a_flush_may_come_earlier_than_the_window():
    policy = make_policy("babyai", history="flushed", flush_every=2)
    lengths = []
    for time in range(6):
        policy.step([observe(policy, time, "go" if time < 4 else "stop")], [0])
        lengths.append(len(policy._actor.episodes[0].steps))
    assert lengths == [1, 2, 1, 2, 1, 2]
    policy.step([observe(policy, 9, "go")], [0])
    assert len(policy._actor.episodes[0].steps) == 1


def test_what_is_known_of_the_next_row_is_read_ahead_and_dropped_where_it_is_of_no_use():
    policy = make_policy("table", ahead=True)

    def follows_on(text: str = TEXT) -> int:
        """How many slots of the next row were read before."""
        turn = policy._actor.request(0, policy._actor.episodes[0], observe(policy, 9, text), None)
        assert (turn.kept is not None) == (turn.used > 0)
        return turn.used

    for time in range(policy.domain.window + 2):
        policy.step([observe(policy, time)], [0])
        [images] = {len(step.tokens) for step in policy._actor.episodes[0].steps}
        rows = len(policy._actor.episodes[0].steps)
        assert follows_on() == len(observe(policy, 0).text_ids) + rows * (
            images + policy.domain.state_length + len(policy.last_ids[0]))
        assert follows_on("another") == 0  # the whole row begins otherwise
    policy.reset([0])
    assert follows_on() == 0


@pytest.mark.parametrize(("history", "ahead"), HISTORIES)
def test_logits_that_are_nan_are_an_error_and_the_episode_is_as_before(history: History, ahead: bool):
    policy, twin = (make_policy("babyai", history=history, ahead=ahead) for _ in range(2))
    for one in (policy, twin):
        one.step([observe(one, 0)], [0])
    sound = policy.params
    policy.params = jax.tree.map(lambda leaf: leaf * np.nan, sound)
    with pytest.raises(ValueError, match=r"logits for env_ids=\[0, 1\] are NaN or infinite.*load another step"):
        policy.step([observe(policy, 1)] * 2, [0, 1])
    policy.params = sound
    assert set(policy._actor.episodes) == {0}
    ids = twin.domain.spec.encode({"action": 3})
    after = [one.follow([observe(one, 2)], [0], [ids])[0] for one in (policy, twin)]
    np.testing.assert_allclose(after[0], after[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("history", "ahead"), HISTORIES)
def test_nothing_is_left_of_an_environment_that_is_forgotten(history: History, ahead: bool):
    policy = make_policy("babyai", history=history, ahead=ahead)
    policy.step([observe(policy, 0)], ["first"])
    policy.step([observe(policy, 0)], ["first"])
    policy.forget(["first", "never seen"])
    gc.collect()
    before = len(jax.live_arrays())
    for number in range(4):
        policy.step([observe(policy, number)], [number])
        policy.step([observe(policy, number + 9)], [number])
    gc.collect()
    assert len(jax.live_arrays()) > before
    policy.forget(range(4))
    gc.collect()
    assert len(jax.live_arrays()) == before
    assert not policy._actor.episodes
    assert not policy.last_ids


@pytest.mark.parametrize(("history", "ahead"), HISTORIES)
def test_a_policy_that_is_warm_compiles_nothing_more(history: History, ahead: bool):
    domain = dataclasses.replace(DOMAINS["babyai"], window=2)
    config = make_config(domain)
    # Committed to a device, as parameters of a checkpoint or a mesh are; the blanks that fill up a batch are not.
    params = jax.device_put(random_params(config.model), jax.devices()[0])
    policy = Policy(config, params, domain, history=history, ahead=ahead)
    policy.warm_up([2])
    decoder = policy._actor.decoder._decoder

    def compiled() -> list[int]:
        return [function._cache_size() for function in (decoder.encode, decoder.decode, decoder.decode_after,
                                                        decoder.read_ahead)]

    before = compiled()
    assert [number > 0 for number in before] == [True, history == "sliding", history == "flushed", ahead]
    for time in range(5):
        acting = [0, 1] if time else [1]
        policy.step([observe(policy, time)] * len(acting), acting)
    policy.step([observe(policy, 0, "another")], [0])
    assert compiled() == before


@pytest.mark.parametrize("images", [make_images(1)[0], {"front": make_images(1)[0]}, (make_images(1)[0],), None, 3,
                                    {name: make_images(1)[0] for name in ("front", "wrist", "back")}],
                         ids=["image", "mapping", "tuple", "none", "number", "one too many"])
def test_a_missing_or_an_unknown_camera_is_refused_with_the_names(images: Any):
    policy = make_policy("clips")
    with pytest.raises(ValueError, match=r"domain 'babyai' sees through front, wrist; found .* expected an image of"):
        policy.act([images], [TEXT], [0])


def test_images_that_are_no_pictures_and_states_that_are_no_numbers_are_refused(table: Policy):
    image = make_images(1)[0]
    for wrong in (image.astype(np.float32), image[..., :1], image[0], image[:0], image[None]):
        with pytest.raises(ValueError, match=r"the camera 'rgb' shows .* expected uint8\[height, width, 3\]"):
            table.prepare(wrong, TEXT, STATE)
    with pytest.raises(ValueError, match="expected sides of at most 8192 pixels"):
        table.prepare(np.zeros((1, 8193, 3), np.uint8), TEXT, STATE)
    for number in (np.inf, np.nan):
        with pytest.raises(ValueError, match=r"the state 'effector_translation' holds .* expected finite numbers"):
            table.prepare(image, TEXT, {**STATE, "effector_translation": np.float32([number, 0])})
    with pytest.raises(ValueError, match="effector_translation"):
        table.prepare(image, TEXT, {"effector_target_translation": np.float32([0.3, 0.1])})
    with pytest.raises(ValueError, match="found a state of type list, expected a mapping"):
        table.prepare(image, TEXT, [0.0])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="found an instruction of type bytes, expected a text"):
        table.prepare(image, b"go", STATE)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="found the empty instruction"):
        table.prepare(image, " ", STATE)


def test_what_was_prepared_is_the_policys_own(table: Policy):
    image = make_images(1)[0]
    seen = table.prepare(image, TEXT, STATE)
    image[:] = 0
    assert seen.frames[0].any()


@pytest.mark.parametrize("layout", ["answer", "label"])
def test_a_domain_without_actions_is_nothing_to_act_with(layout: str):
    with pytest.raises(ValueError, match=f"act: domain 'clips' has the layout '{layout}', which predicts no actions"):
        new_policy(clip_domain(layout)).act([make_images(1)[0]], ["go"], [0])


def test_mistaken_calls_are_answered_with_what_was_found(table: Policy):
    image = make_images(1)[0]
    with pytest.raises(ValueError, match=r"found 1 images, 2 instructions and 2 env_ids and 2 states"):
        table.act([image], [TEXT] * 2, [0, 1], [STATE] * 2)
    with pytest.raises(ValueError, match=r"env_ids=\[4, 4\] hold an id twice"):
        table.act([image] * 2, [TEXT] * 2, [4, 4], [STATE] * 2)
    with pytest.raises(ValueError, match=r"domain 'table' needs a state for each environment"):
        table.act([image], [TEXT], [0])
    with pytest.raises(ValueError, match=r"expected at most max_text=32"):
        table.act([image], ["x" * 100], [0], [STATE])
    with pytest.raises(ValueError, match=r"domain 'babyai' has no state"):
        make_policy("babyai").act([image], [TEXT], [0], [STATE])
    with pytest.raises(ValueError, match=r"found the action ids \[5\], expected a complete legal action"):
        table.follow([observe(table, 0)], [0], [np.asarray([5], np.int32)])
    assert table.step([], []) == []


@pytest.mark.parametrize(("arguments", "message"), [
    ({"temperature": -1}, "temperature=-1"),
    ({"temperature": np.nan}, "temperature=nan"),
    ({"temperature": np.inf}, "temperature=inf"),
    ({"history": "none"}, "history='none': expected 'sliding' or 'flushed'"),
    ({"history": "flushed", "ahead": True}, "ahead is of history='sliding', but found history='flushed'"),
    ({"flush_every": 2}, "flush_every=2 is of history='flushed'"),
    ({"history": "flushed", "flush_every": 5}, "flush_every=5: domain 'table' was trained on windows of 2 steps"),
])
def test_a_policy_that_cannot_be_is_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        new_policy(DOMAINS["table"], **arguments)


@pytest.mark.parametrize("temperature", [-1.0, np.nan, np.inf])
def test_another_temperature_that_cannot_be_is_refused(table: Policy, temperature: float):
    with pytest.raises(ValueError, match=f"temperature={temperature} must be 0"):
        table.with_temperature(temperature)


def test_a_policy_is_loaded_from_a_workdir_its_checkpoints_or_one_step(straight: Trained):
    checkpoints = straight.workdir / "checkpoints"
    saved = {step: restore_acting_parameters(checkpoints, straight.run.config, step) for step in (10, 20)}
    expected = {step: layers_apart({name: params[name] for name in ("vision", "connector", "language")})
                for step, params in saved.items()}
    assert list(differing(expected[10], expected[20]))
    for path, step, loaded in ((straight.workdir, None, 20), (checkpoints, None, 20), (checkpoints / "10", None, 10),
                               (straight.workdir, 10, 10)):
        policy = Policy.load(path, step=step, domain="tiles")
        assert list(differing(policy.params, expected[loaded])) == []
    action = policy.act(make_images(1), ["go to red"], [0])[0]
    assert 0 <= int(action["action"]) < 7


def test_a_missing_checkpoint_and_an_unknown_domain_are_refused(straight: Trained, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        Policy.load(tmp_path)
    with pytest.raises(ValueError, match=r"domain='table': .* was trained on tiles; name one of them"):
        Policy.load(straight.workdir, domain="table")
