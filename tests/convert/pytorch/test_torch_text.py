"""torch_agent.py generates the texts and classes of our policy, and the texts of transformers' own `generate`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported_agents import exported
from tiny_checkpoints import make_domain

from agent_jax.actions.vocabulary import ByteTokenizer, Vocabulary
from agent_jax.batch import RowSize
from agent_jax.convert.pytorch import torch_agent
from agent_jax.data.pipeline import layout
from agent_jax.policy import Policy

PROMPTS = ["a", "what is it", "now?"]
LENGTHS = (1, 3, 2)  # images of each clip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


def clips(seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, (length, 24, 24, 3), np.uint8) for length in LENGTHS]


FREQUENT = 143  # an id that is often generated


def with_frequent_end(table: Any) -> Any:
    """A token table in which </s> is close to a frequent token, so that some answers end."""
    table = table.detach().clone() if isinstance(table, torch.Tensor) else np.array(table)
    table[torch_agent.EOS] = 1.02 * table[FREQUENT]
    return table


def policy_with_ends(folder: Path) -> torch_agent.Policy:
    policy = torch_agent.Policy(folder)
    policy.agent.language.embed_tokens.weight.data = with_frequent_end(policy.agent.language.embed_tokens.weight)
    return policy


def test_answers_are_those_of_transformers_generate(base: Path):
    from transformers import OPTForCausalLM

    made, folder, _ = exported(base, "texts")
    policy = policy_with_ends(folder)
    model = OPTForCausalLM.from_pretrained(folder / "language").eval()
    model.model.decoder.embed_tokens.weight.data = policy.agent.language.embed_tokens.weight.data
    said = policy.say(clips(), PROMPTS)
    assert len({text.complete for text in said}) == 2  # some end, some are cut off
    rows = input_embeddings(policy.agent, torch_agent.Domain.load(folder, "caption"))
    length = max(map(len, rows))
    left = [torch.nn.functional.pad(row, (0, 0, length - len(row), 0)) for row in rows]
    mask = [torch.arange(length) >= length - len(row) for row in rows]
    size, end = made.vocabulary.text.size, made.domains["caption"].max_answer
    found: Any = model.generate(
        inputs_embeds=torch.stack(left), attention_mask=torch.stack(mask).long(), do_sample=False, max_new_tokens=end,
        suppress_tokens=list(range(size, made.vocabulary.size)), return_dict_in_generate=True, output_scores=True)
    for row, text in enumerate(said):
        ids = [*text.ids, torch_agent.EOS] if text.complete else text.ids
        assert found.sequences[row, : len(ids)].tolist() == ids
        assert text.complete or len(ids) == end
        log_probability = sum(float(scores[row].double().log_softmax(0)[token])
                              for scores, token in zip(found.scores, ids, strict=False))
        np.testing.assert_allclose(text.log_probability, log_probability, atol=1e-4)


def input_embeddings(agent: torch_agent.Agent, domain: torch_agent.Domain) -> list[torch.Tensor]:
    """The language model's input for each prompt, from the layout of training."""
    rows = []
    with torch.inference_mode():
        for prompt, clip in zip(PROMPTS, clips(), strict=True):
            steps = [torch_agent.Step([image]) for image in clip]
            batch = torch_agent.lay_out(domain, [(domain.text_ids(prompt), steps, [])], 9)
            visual_GD = agent.encode(batch["frames_BFHWC"], batch["clip_BF"]).flatten(0, 2)
            token_SD, index_S = agent.language.embed_tokens(batch["token_BS"][0]), batch["visual_BS"][0]
            rows.append(torch.where((index_S >= 0)[:, None], visual_GD[index_S.clamp(min=0)], token_SD))
    return rows


def test_a_batch_has_the_answers_of_its_prompts_alone(base: Path):
    _, folder, _ = exported(base, "texts")
    policy = policy_with_ends(folder)
    together = policy.say(clips(), PROMPTS)
    for clip, prompt, expected in zip(clips(), PROMPTS, together, strict=True):
        [alone] = policy.say([list(clip)], [prompt], domain="caption")
        assert (alone.text, alone.ids, alone.complete) == (expected.text, expected.ids, expected.complete)
        np.testing.assert_allclose(alone.log_probability, expected.log_probability, atol=1e-4)
    for text, cut in zip(together, policy.say(clips(), PROMPTS, max_tokens=2), strict=True):
        assert cut.ids == text.ids[:2]
        assert not cut.complete or len(text.ids) < 2
    assert policy.say([], []) == []


def test_one_image_is_a_clip_of_one_image(base: Path):
    _, folder, _ = exported(base, "texts")
    policy, image = torch_agent.Policy(folder), clips()[0][0]
    assert policy.say([image], ["a"]) == policy.say([image[None]], ["a"]) == policy.say([[image]], ["a"])
    labels = [policy.classify([images])[0].label for images in (image, image[None], [image])]
    assert len(set(labels)) == 1


def test_top_p_keeps_the_fewest_ids_that_reach_it():
    log_K, random = np.log([0.1, 0.5, 0.15, 0.25]), np.random.default_rng(0)
    assert torch_agent.sampled(log_K, 0.0, 1.0, random) == 1
    for top_p, kept in ((0.4, {1}), (0.5, {1}), (0.6, {1, 3}), (0.8, {1, 2, 3}), (1.0, {0, 1, 2, 3})):
        assert {torch_agent.sampled(log_K, 1.0, top_p, random) for _ in range(200)} == kept
    drawn = [torch_agent.sampled(log_K, 0.5, 1.0, random) for _ in range(4000)]
    assert abs(drawn.count(1) / 4000 - 0.5**2 / (0.1**2 + 0.5**2 + 0.15**2 + 0.25**2)) < 0.03


def test_sampling_depends_on_the_seed_and_the_number_of_the_prompt_alone(base: Path):
    _, folder, _ = exported(base, "texts")
    policy = torch_agent.Policy(folder)
    how: dict[str, Any] = {"temperature": 1.5, "top_p": 0.9}
    first = policy.say(clips(), PROMPTS, seed=1, **how)
    assert [text.ids for text in policy.say(clips(), PROMPTS, seed=1, **how)] == [text.ids for text in first]
    assert [text.ids for text in policy.say(clips(), PROMPTS, seed=2, **how)] != [text.ids for text in first]
    assert policy.say(clips()[:1], PROMPTS[:1], seed=1, **how)[0].ids == first[0].ids


@pytest.mark.parametrize("name", ["caption", "ward"])
@pytest.mark.parametrize("fields", [{"video": True}, {"cameras": ("a", "b"), "fixed_positions": True}])
def test_rows_with_a_prompt_have_the_layout_of_training(base: Path, name: str, fields: dict[str, Any]):
    domain = make_domain(name, 0, Vocabulary(ByteTokenizer(), ()), **fields)
    random = np.random.default_rng(0)
    windows, samples = [], []
    for count in (3, 1):
        text = np.asarray([2, *random.integers(4, 200, 3 + count)], np.int32)
        answer = np.asarray([*random.integers(4, 200, count), 2], np.int32)
        seen = [tuple(random.integers(0, 256, (24, 24, 3), np.uint8) for _ in domain.cameras) for _ in range(count)]
        none = np.zeros(0, np.int32)
        windows.append(layout.Window(
            0, text, tuple(layout.Step(images, none, none) for images in seen), 0, video=domain.video, prompt=True,
            first_position=domain.first_position, answer_ids=answer if name == "caption" else none,
            label=count if name == "ward" else -1))
        samples.append((text.tolist(), [torch_agent.Step(images) for images in seen],
                        answer.tolist() if name == "caption" else count))
    usages = [layout.window_usage(window, 10) for window in windows]
    frames, slots, targets = (max(getattr(usage, field) for usage in usages)
                              for field in ("frames", "slots", "targets"))
    size = RowSize(frames, 24, slots, targets)
    expected = layout.stack([layout.lay_out([window], size, 10, 9) for window in windows])
    arguments: Any = (name, 3, 12, domain.first_position, domain.video, 24, domain.camera_names, None, None, None)
    torch_domain = torch_agent.Domain(*arguments, layout=domain.layout)
    for field, tensor in torch_agent.lay_out(torch_domain, samples, 9).items():
        np.testing.assert_array_equal(tensor.numpy(), getattr(expected, field), err_msg=field)


def test_generated_ids_decode_as_ours(base: Path):
    made, folder, _ = exported(base, "texts")
    domain, random = torch_agent.Domain.load(folder, "caption"), np.random.default_rng(0)
    for ids in (random.integers(0, 260, (50, 9)).tolist(), [[0, 1, 2, 3]], [[4 + byte for byte in "für 5 €".encode()]]):
        for row in ids:
            assert domain.text(row) == made.vocabulary.text.decode(row)


def test_the_folder_tests_itself_in_every_domain(base: Path, capsys: pytest.CaptureFixture[str]):
    _, folder, _ = exported(base, "texts")
    torch_agent.main(str(folder))
    printed = capsys.readouterr().out
    assert "caption: an answer [GeneratedText(" in printed
    assert "ward: a class [Classification(" in printed
    assert printed.count(": losses") == 4
    assert "policy.say(" in (folder / "README.md").read_text()


def mixed(base: Path, to: Path) -> Path:
    """A folder with two domains of actions, one that answers and one with labels."""
    shutil.copytree(exported(base, "images")[1], to)
    content = json.loads((to / "agent.json").read_text())
    content["prompted"] = json.loads((exported(base, "texts")[1] / "agent.json").read_text())["prompted"]
    (to / "agent.json").write_text(json.dumps(content))
    return to


def test_what_does_not_fit_the_domain_is_refused(base: Path, tmp_path: Path):
    folder = mixed(base, tmp_path / "mixed")
    policy, image = torch_agent.Policy(folder, domain="minecraft"), clips()[0][0]
    assert policy.act([image], ["go"], [0])
    assert policy.say([image], ["a"])
    refused: list[tuple[dict[str, Any], str]] = [
        ({"domain": "table"}, "'table'.*'actions', which predicts no text; expected.*'answer': caption"),
        ({"domain": "nothing"}, "domain 'nothing': .* has caption; name one"),
        ({"prompts": ["x" * 12]}, "'caption': 'xxxxxxxxxxxx' has 13 tokens with </s>, expected at most 12"),
        ({"prompts": [7]}, "'caption': found the prompt 7"),
        ({"prompts": "a"}, "found 1 clips and one text"),
        ({"prompts": ["a", "b"]}, "found 1 clips and 2 prompts"),
        ({"images": [[image] * 4]}, "'caption': found a clip of 4 images, expected 1 to 3"),
        ({"images": [[]]}, "'caption': found a clip of 0 images, expected 1 to 3"),
        ({"images": [None]}, "'caption': found a NoneType, expected an image"),
        ({"images": [image / 255]}, r"found .*float64 \(24, 24, 3\), expected images uint8"),
        ({"max_tokens": 9}, "max_tokens=9: domain 'caption' .* 8 tokens with </s>; expected 1 to 8"),
        ({"temperature": -1.0}, "temperature=-1.0"), ({"top_p": 0.0}, "top_p=0.0"), ({"top_p": 1.5}, "top_p=1.5")]
    for changes, message in refused:
        arguments = {"images": [image], "prompts": ["a"], **changes}
        with pytest.raises(ValueError, match=message):
            policy.say(**arguments)
    with pytest.raises(ValueError, match="'caption'.*'answer', which predicts no class; expected.*'label': ward"):
        policy.classify([image], domain="caption")
    with pytest.raises(ValueError, match="'caption'.*'answer', which predicts no actions; .*: minecraft, table"):
        torch_agent.Policy(folder, domain="caption").act([image], ["go"], [0])
    with pytest.raises(ValueError, match="has minecraft, table; name one"):
        torch_agent.Policy(folder)


def test_a_folder_without_actions_has_no_domain_to_act_in_and_one_without_texts_none_to_answer_in(base: Path):
    _, folder, _ = exported(base, "texts")
    image = clips()[0][0]
    with pytest.raises(ValueError, match="no domain of the layout 'actions', but caption, ward"):
        torch_agent.Policy(folder).act([image], ["go"], [0])
    _, folder, _ = exported(base, "images")
    with pytest.raises(ValueError, match=r"no domain of the layout 'answer'; found .*table \('actions'\)"):
        torch_agent.Policy(folder, domain="table").say([image], ["a"])


def test_folders_of_earlier_exports_still_act(base: Path, tmp_path: Path):
    _, folder, _ = exported(base, "images")
    shutil.copytree(folder, tmp_path / "old")
    content = json.loads((folder / "agent.json").read_text())
    del content["prompted"]
    (tmp_path / "old" / "agent.json").write_text(json.dumps(content))
    policy = torch_agent.Policy(tmp_path / "old", domain="minecraft")
    assert policy.act([clips()[0][0]], ["go"], [0])
    with pytest.raises(ValueError, match="no domain of the layout 'label'"):
        policy.classify([clips()[0][0]])


def test_nan_parameters_are_refused(base: Path):
    _, folder, _ = exported(base, "texts")
    policy = torch_agent.Policy(folder)
    torch.nn.init.constant_(policy.agent.vision.post_layernorm.bias, torch.nan)
    for call in (lambda: policy.say(clips()[:1], ["a"]), lambda: policy.classify(clips()[:1])):
        with pytest.raises(ValueError, match="the logits are NaN or infinite"):
            call()


def test_answers_are_those_of_our_policy(base: Path):
    made, folder, _ = exported(base, "texts")
    language = made.average["language"]
    ends = {**made.average, "language": {**language, "token_embedding": with_frequent_end(language["token_embedding"])}}
    ours = Policy(made.config, made.average, made.domains["caption"])
    for one, other in ((ours, torch_agent.Policy(folder)), (ours.with_params(ends), policy_with_ends(folder))):
        for most in (0, 3):
            for mine, theirs in zip(one.say(clips(), PROMPTS, max_tokens=most),
                                    other.say(clips(), PROMPTS, max_tokens=most), strict=True):
                assert (mine.text, mine.ids.tolist(), mine.complete) == (theirs.text, theirs.ids, theirs.complete)
                np.testing.assert_allclose(theirs.log_probability, mine.log_probability, atol=1e-4)


def test_classes_are_those_of_our_policy(base: Path):
    made, folder, _ = exported(base, "texts")
    ours, theirs = Policy.load(made.path, domain="ward"), torch_agent.Policy(folder)
    for mine, other in zip(ours.classify(clips()), theirs.classify(clips()), strict=True):
        assert mine.label == other.label
        np.testing.assert_allclose(other.probabilities, mine.probabilities, atol=1e-5)
