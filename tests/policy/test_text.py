"""Text generation and classification: the same numbers as the whole model without a cache, and clear refusals."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest
from data_stores import CAMERAS, babyai_domain, clip_domain
from packed_rows import random_params
from tiny_checkpoints import make_checkpoint

from agent_jax.actions.vocabulary import EOS
from agent_jax.config import Config, LanguageConfig, MaeConfig, ModelConfig, VisionConfig
from agent_jax.data.pipeline.domains import Domain
from agent_jax.data.pipeline.layout import Step, Window, lay_out, row_size, stack
from agent_jax.models.agent import Agent
from agent_jax.policy import Policy
from agent_jax.policy.observation import NO_IDS
from agent_jax.policy.text_decoder import nucleus

ANSWERS = {"clip": clip_domain("answer"), "images": clip_domain("answer", video=False, fixed_positions=True),
           "cameras": clip_domain("answer", cameras=CAMERAS, window=2)}
PROMPTS = ["", "who?", "when?"]
LENGTHS = [3, 1, 2]  # images of each clip


def make_policy(domain: Domain, *, temporal: bool = True, likely_end: float = 0.0) -> Policy:
    config = Config(model=ModelConfig(
        vision=VisionConfig(image_size=16, patch_size=8, width=16, depth=1, heads=2, mlp_width=32,
                            temporal_attention=temporal),
        language=LanguageConfig(width=16, depth=2, heads=2, mlp_width=32, positions=256,
                                vocabulary_size=domain.vocabulary.size),
        mae=MaeConfig(width=16, depth=1, heads=2, mlp_width=32), classes=3))
    params = random_params(config.model)
    if likely_end:  # the final norm's bias points to </s>
        row_D = params["language"]["token_embedding"][EOS]
        params["language"]["final_norm"]["bias"] = likely_end * row_D / np.linalg.norm(row_D)
    return Policy(config, params, domain)


def make_clip(domain: Domain, steps: int, seed: int = 0) -> Any:
    images = np.random.default_rng(seed).integers(0, 256, (steps, len(domain.cameras), 16, 16, 3), np.uint8)
    return images[:, 0] if len(domain.cameras) == 1 else [tuple(step) for step in images]


def window_of(domain: Domain, clip: Any, prompt: str, answer: Any = ()) -> Window:
    steps = tuple(Step(step if isinstance(step, tuple) else (step,), NO_IDS, NO_IDS) for step in clip)
    return Window(domain.index, domain.text_ids(prompt), steps, 0, video=domain.video,
                  first_position=domain.first_position, prompt=True, answer_ids=np.asarray(answer, np.int32))


def uncached_logits(policy: Policy, windows: Sequence[Window]) -> np.ndarray:
    """Logits of the text ids before each token of the windows' answers, by the whole model over the whole rows."""
    model, domain = policy._config.model, policy.domain
    size = row_size([domain], 1 + model.vision.patches, domain.images)
    rows = [lay_out((window,), size, 1 + model.vision.patches, model.vision.patches) for window in windows]
    output: Any = jax.jit(Agent(model).apply)({"params": random_params(model)}, stack(rows))
    return np.asarray(output.logits_BTK[:, :, : domain.vocabulary.text.size], np.float64)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


@pytest.mark.parametrize("name", ANSWERS)
def test_greedy_texts_of_a_batch_are_those_of_the_uncached_model(name: str):
    policy = make_policy(ANSWERS[name])
    domain = policy.domain
    clips = [make_clip(domain, min(steps, domain.window), seed) for seed, steps in enumerate(LENGTHS)]
    texts = policy.say(clips, PROMPTS)
    said = [[*text.ids.tolist(), *([EOS] if text.complete else [])] for text in texts]
    logits_BTK = uncached_logits(policy, [window_of(domain, *one) for one in zip(clips, PROMPTS, said, strict=True)])
    for text, ids, logits_TK in zip(texts, said, logits_BTK, strict=True):
        assert len(ids) == domain.max_answer or text.complete
        log_probability = 0.0
        for token, logits in zip(ids, logits_TK, strict=False):
            assert logits[token] > logits.max() - 1e-4  # the best, or as good to rounding
            log_probability += log_softmax(logits)[token]
        assert text.log_probability == pytest.approx(log_probability, abs=1e-3)
        assert text.text == domain.vocabulary.text.decode(text.ids.tolist())


def test_rows_of_a_batch_do_not_depend_on_each_other():
    policy = make_policy(ANSWERS["clip"])
    clips = [make_clip(policy.domain, steps, seed) for seed, steps in enumerate(LENGTHS)]
    for number, together in enumerate(policy.say(clips, PROMPTS)):
        (single,) = policy.say(clips[number : number + 1], PROMPTS[number : number + 1])
        assert single.ids.tolist() == together.ids.tolist()
        assert single.log_probability == pytest.approx(together.log_probability, abs=1e-4)


def test_a_text_ends_with_its_end_token_or_at_the_most_tokens():
    policy = make_policy(ANSWERS["clip"], likely_end=4.0)
    clips, prompts = [make_clip(policy.domain, 3, seed) for seed in range(16)], ["who?"] * 16
    texts = policy.say(clips, prompts, temperature=1.5)
    lengths = [len(text.ids) + text.complete for text in texts]
    assert any(text.complete for text in texts)
    assert len(set(lengths)) > 2
    assert all(EOS not in text.ids for text in texts)
    assert all(text.complete or length == policy.domain.max_answer for text, length in zip(texts, lengths, strict=True))
    short = policy.say(clips, prompts, temperature=1.5, max_tokens=2)
    assert max(len(text.ids) + text.complete for text in short) == 2
    for text, longer in zip(short, texts, strict=True):  # the same draws
        assert text.ids.tolist() == longer.ids.tolist()[:2]


def test_samples_depend_on_the_seed_and_a_small_top_p_is_greedy():
    policy = make_policy(ANSWERS["clip"])
    clips, prompts = [make_clip(policy.domain, 3)] * 8, ["who?"] * 8

    def ids(**options: Any) -> list[list[int]]:
        return [text.ids.tolist() for text in policy.say(clips, prompts, **options)]

    sampled = ids(temperature=1.0, seed=3)
    assert sampled == ids(temperature=1.0, seed=3)
    assert sampled != ids(temperature=1.0, seed=4)
    assert len({tuple(one) for one in sampled}) == 8  # equal prompts have draws of their own
    assert ids(temperature=1.0, top_p=1e-6) == ids()


def test_samples_have_the_probabilities_of_the_softmax():
    policy = make_policy(ANSWERS["clip"])
    clip = make_clip(policy.domain, 2)
    (logits_TK,) = uncached_logits(policy, [window_of(policy.domain, clip, "who?", [EOS])])
    probability = np.exp(log_softmax(logits_TK[0] / 0.25))
    best = int(np.argmax(probability))
    drawn = [([*text.ids, EOS])[0] for text in policy.say([clip] * 640, ["who?"] * 640, temperature=0.25,
                                                            max_tokens=1)]
    spread = np.sqrt(probability[best] * (1 - probability[best]) / 640)
    assert 0.02 < probability[best] < 0.98
    assert abs(np.mean(np.asarray(drawn) == best) - probability[best]) < 4 * spread


def test_the_nucleus_is_the_fewest_ids_that_reach_the_probability():
    logits = np.log(np.float32([[0.1, 0.4, 0.3, 0.2], [0.97, 0.01, 0.01, 0.01]]))
    assert np.asarray(nucleus(logits, 0.6)).tolist() == [[False, True, True, False], [True, False, False, False]]
    assert np.asarray(nucleus(logits, 1.0)).all()


@pytest.mark.parametrize(("video", "temporal"), [(True, True), (True, False), (False, True)])
def test_classes_are_those_of_the_training_row(video: bool, temporal: bool):
    domain = clip_domain("label", video=video)
    policy = make_policy(domain, temporal=temporal)
    model, clips = policy._config.model, [make_clip(domain, steps, steps) for steps in LENGTHS]
    size = row_size([domain], 1 + model.vision.patches, domain.images)
    rows = [lay_out((dataclasses.replace(window_of(domain, clip, ""), label=0),), size, 1 + model.vision.patches,
                    model.vision.patches) for clip in clips]
    output: Any = jax.jit(Agent(model).apply)({"params": random_params(model)}, stack(rows))
    for found, logits_Y in zip(policy.classify(clips), output.classes_BY, strict=True):
        np.testing.assert_allclose(found.probabilities, jax.nn.softmax(logits_Y), atol=1e-5)
        assert found.label == int(np.argmax(logits_Y))


def test_one_checkpoint_acts_says_and_classifies(tmp_path):
    make_checkpoint(tmp_path, ("caption", "table", "ward"), classes=3)
    policy = Policy.load(tmp_path)
    assert policy.domain.name == "table"  # the only one with actions
    image = np.zeros((30, 40, 3), np.uint8)
    state = {key: np.zeros(2, np.float32) for key in policy.domain.state.spec.fields}
    before = policy.with_temperature(0.0).act([image], ["go"], [0], [state])
    (text,), (found,) = policy.say([image], ["what?"]), policy.classify([[image, image]])
    assert len(text.ids) <= 8
    assert found.probabilities.shape == (3,)
    for key, value in policy.act([image], ["go"], [0], [state])[0].items():
        np.testing.assert_array_equal(value, before[0][key])
    speaker = Policy.load(tmp_path, domain="caption")
    assert speaker.say([image], ["what?"])[0].ids.tolist() == text.ids.tolist()
    with pytest.raises(ValueError, match=r"act: domain 'caption' has the layout 'answer', .* no actions; .*\(table\)"):
        speaker.act([image], ["go"], [0])
    with pytest.raises(ValueError, match=r"say: domain 'ward' has the layout 'label'; expected .*\(caption\)"):
        policy.say([image], ["what?"], domain="ward")
    with pytest.raises(ValueError, match=r"classify: domain='wards' is not a domain of the run; .*\(ward\)"):
        policy.classify([image], domain="wards")


def test_a_checkpoint_without_domains_has_nothing_to_load(tmp_path):
    make_checkpoint(tmp_path, ())
    with pytest.raises(ValueError, match="was trained on no domain"):
        Policy.load(tmp_path)


def test_what_does_not_fit_is_refused():
    policy = make_policy(ANSWERS["clip"])
    clip = make_clip(policy.domain, 3)
    for arguments, message in (
            (([clip], ["a long question"]), "max_text=6"),
            (([np.concatenate([clip, clip])], ["who?"]), "clip of 6 images, expected 1 to 3"),
            (([np.zeros((0, 16, 16, 3), np.uint8)], ["who?"]), "clip of 0 images"),
            (([clip], ["who?", "who?"]), "1 images or clips and 2 prompts"),
            (([clip], "who?"), "prompts as one str"), ((clip[0], ["who?"]), "images as one ndarray"),
            (([clip.astype(np.float32)], ["who?"]), r"say: the camera 'front' shows float32.*expected uint8"),
            (([clip], [7]), "prompt of type int")):
        with pytest.raises(ValueError, match=message):
            policy.say(*arguments)
    for options, message in (({"max_tokens": 11}, "max_tokens=11: .*expected 1 to 10"), ({"top_p": 0.0}, "top_p=0.0"),
                             ({"temperature": -1.0}, "temperature=-1.0")):
        with pytest.raises(ValueError, match=message):
            policy.say([clip], ["who?"], **options)
    acting = make_policy(babyai_domain())
    with pytest.raises(ValueError, match=r"say: no domain is named|say: .*this run had none"):
        acting.say([clip], ["who?"])
    broken = make_policy(ANSWERS["clip"])
    broken = broken.with_params(jax.tree.map(lambda leaf: leaf * np.nan, random_params(broken._config.model)))
    with pytest.raises(ValueError, match="NaN or infinite"):
        broken.say([clip], ["who?"])
