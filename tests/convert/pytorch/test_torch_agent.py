"""torch_agent.py acts, encodes actions and trains as our agent does, and needs no JAX."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from exported_agents import exported, images
from hypothesis import given
from hypothesis import strategies as st
from small_runs import listing
from tiny_checkpoints import SPECS, make_domain

from agent_jax.actions import ActionSpec, BoundSpec
from agent_jax.actions.arms import arm_spec
from agent_jax.actions.specs import PARTS
from agent_jax.actions.vocabulary import Block, ByteTokenizer, Vocabulary
from agent_jax.batch import RowSize
from agent_jax.checkpoints.exported.tensors import in_module, to_tensors
from agent_jax.config import LossConfig
from agent_jax.convert.parity.pytorch import as_mask, as_torch
from agent_jax.convert.parity.rows import parity_rows
from agent_jax.convert.pytorch import torch_agent
from agent_jax.convert.pytorch.folder import acting_json, spec_json
from agent_jax.data.pipeline import layout
from agent_jax.models.agent import Agent
from agent_jax.models.losses import loss_sums, loss_weights, total
from agent_jax.models.mae import random_mask
from agent_jax.models.vision import patchify
from agent_jax.policy import Policy

VOCABULARY = Vocabulary.build("bytes", ("iafm", "babyai"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


def bound_specs() -> dict[str, BoundSpec]:
    found = {}
    for name, (spec, state) in SPECS.items():
        found[f"{name} actions"] = BoundSpec(spec, VOCABULARY)
        if state is not None:
            found[f"{name} state"] = BoundSpec(state, VOCABULARY)
    # Bounds that no float32 holds exactly, of which some round up and some down.
    arm = ActionSpec.from_dict(arm_spec("arm", names=("pan", "lift", "gripper"), low=(-0.7, -0.1, 0.0),
                                        high=(0.7, 0.1, 100.0)))
    found["arm actions"] = BoundSpec(arm, Vocabulary(ByteTokenizer(), (Block("arm", arm.tokens()),)))
    return found


BOUND = bound_specs()
CODECS = {name: torch_agent.Codec(json.loads(json.dumps(spec_json(bound)))) for name, bound in BOUND.items()}


def random_values(bound: BoundSpec, random: np.random.Generator) -> dict[str, Any]:
    """Values in and out of bounds, some of them neutral."""
    values: dict[str, Any] = {}
    for key, (shape, dtype) in bound.spec.fields.items():
        low, high = bound.spec.bounds(key)
        if dtype == np.bool_ or dtype.kind == "i":
            values[key] = random.integers(low.astype(int), high.astype(int), shape, endpoint=True).astype(dtype)
        else:
            values[key] = np.float32(low + (high - low) * random.uniform(-0.2, 1.2, shape))
            if random.random() < 0.2:
                values[key] = np.zeros(shape, np.float32)
    return values


@pytest.mark.parametrize("name", BOUND)
@given(seed=st.integers(0, 2**32 - 1))
def test_values_become_the_same_ids_and_ids_the_same_values(name: str, seed: int):
    bound, codec = BOUND[name], CODECS[name]
    values = random_values(bound, np.random.default_rng(seed))
    ids = bound.encode(values).tolist()
    assert codec.encode(values) == ids
    assert codec.encode(bound.decode(ids)) == ids
    expected, found = bound.decode(ids), codec.decode(ids)
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert found[key].dtype == array.dtype
        np.testing.assert_array_equal(found[key], array)


def test_every_kind_of_part_is_compared():
    compared = {type(part) for bound in BOUND.values() for part in bound.spec.parts}
    assert compared == set(PARTS.values()), "add a spec with the new part to bound_specs()"


def test_the_end_of_an_episode_has_the_same_ids():
    bound, codec = BOUND["table actions"], CODECS["table actions"]
    assert codec.encode({"terminal": True}) == bound.terminal_ids().tolist()
    assert codec.decode(bound.terminal_ids().tolist())["terminal"]


def test_values_without_a_token_are_refused():
    codec = CODECS["table actions"]
    with pytest.raises(ValueError, match="action: found nan"):
        codec.encode({"action": [np.nan, 0.0]})
    with pytest.raises(ValueError, match=r"action is missing or not of shape \(2,\)"):
        codec.encode({"action": [0.0]})
    with pytest.raises(ValueError, match="action: found 99"):
        CODECS["babyai actions"].encode({"action": 99})


STATE = {"effector_target_translation": np.float32([0.3, 0.1]), "effector_translation": np.float32([0.2, 0.0])}


@pytest.mark.parametrize(("kind", "name"), [
    ("images", "table"), pytest.param("clips", "edge", marks=pytest.mark.slow),
    pytest.param("images", "minecraft", marks=pytest.mark.slow)])
def test_the_policies_choose_the_same_actions_over_whole_episodes(base: Path, kind: str, name: str):
    made, folder, _ = exported(base, kind)
    ours, theirs = Policy.load(made.path, domain=name), torch_agent.Policy(folder, domain=name)
    texts = ["go", "take blue"]
    episodes = [0, 1]
    for step in range(5):  # beyond the window of 3
        if step == 3:
            for policy in (ours, theirs):
                policy.reset([1])
        seen = images(made, 2, seed=step)
        states = [STATE, STATE] if made.domains[name].state else None
        order = [0, 1] if step % 2 else [1, 0]
        arguments = [seen[i] for i in order], [texts[i] for i in order], [episodes[i] for i in order]
        for mine, other in zip(ours.act(*arguments, states), theirs.act(*arguments, states), strict=True):
            assert mine.keys() == other.keys()
            for key in mine:
                np.testing.assert_array_equal(mine[key], other[key])


def test_several_actions_per_image_equal_those_of_our_policy(base: Path):
    made, folder, _ = exported(base, "images")
    domain = dataclasses.replace(made.domains["table"], window=6, actions_per_image=2)
    ours, theirs = Policy(made.config, made.average, domain), torch_agent.Policy(folder, domain="table")
    theirs.domain.window, theirs.domain.actions_per_image = 6, acting_json(domain)["actions_per_image"]
    for step in range(5):  # beyond the window of 3 images
        seen = images(made, 2, seed=step)
        found, expected = (policy.act(seen, ["go", "stop there"], [0, 1], [STATE, STATE]) for policy in (theirs, ours))
        assert [len(actions) for actions in found] == [len(actions) for actions in expected]
        for mine, other in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
            assert mine.keys() == other.keys()
            for key in mine:
                np.testing.assert_array_equal(mine[key], other[key])


def test_sampling_draws_in_proportion_to_the_softmax():
    policy = object.__new__(torch_agent.Policy)
    policy.temperature, policy._random = 2.0, np.random.default_rng(0)
    logits = {5: 0.0, 7: 2.0 * np.log(3.0)}
    drawn = [policy._choose(logits) for _ in range(4000)]
    assert abs(drawn.count(7) / 4000 - 0.75) < 0.03
    policy.temperature = 0.0
    assert policy._choose(logits) == 7


def test_an_observation_of_another_form_is_refused(base: Path):
    made, folder, _ = exported(base, "clips")
    policy = torch_agent.Policy(folder)
    [seen] = images(made, 1)
    with pytest.raises(ValueError, match="found 1 images, expected one of each camera: left, right"):
        policy.act([seen[:1]], ["go"], [0])
    named = policy.act([{"right": seen[1], "left": seen[0]}], ["go"], ["named"])
    in_order = policy.act([seen], ["go"], ["in order"])
    assert str(named) == str(in_order)
    with pytest.raises(ValueError, match="expected images uint8"):
        policy.act([[image.astype(np.float32) for image in seen]], ["go"], [0])
    with pytest.raises(ValueError, match="has 40 tokens with </s>, expected at most 12"):
        policy.act([seen], ["x" * 39], [0])
    with pytest.raises(ValueError, match="domain 'nothing': .* has edge; name one"):
        torch_agent.Policy(folder, domain="nothing")


def test_inputs_of_unequal_length_are_refused_as_by_our_policy(base: Path):
    made, folder, _ = exported(base, "images")
    size = made.config.model.vision.image_size
    image = np.zeros((size, size, 3), np.uint8)
    table = torch_agent.Policy(folder, domain="table")
    assert table.domain.state is not None
    state = table.domain.state.decode(table.domain.state.first())
    for policy in (table, Policy.load(made.path, domain="table")):
        with pytest.raises(ValueError, match="domain 'table' .*state"):
            policy.act([image], ["go"], [0])
        with pytest.raises(ValueError, match=r"env_ids.*\[0, 0\]"):
            policy.act([image, image], ["go", "go"], [0, 0], [state, state])
        with pytest.raises(ValueError, match="2 images.* 2 instructions.* 2 env_ids.* 1 states"):
            policy.act([image, image], ["go", "go"], [0, 1], [state])
        assert policy.act([], [], [], []) == []
    for policy in (torch_agent.Policy(folder, domain="minecraft"), Policy.load(made.path, domain="minecraft")):
        with pytest.raises(ValueError, match="domain 'minecraft' .*state"):
            policy.act([image], ["go"], [0], [state])


def test_nan_parameters_are_refused(base: Path):
    made, folder, _ = exported(base, "clips")
    policy = torch_agent.Policy(folder)
    torch.nn.init.constant_(policy.agent.language.final_layer_norm.bias, torch.nan)
    with pytest.raises(ValueError, match="the logits are NaN or infinite"):
        policy.act(images(made, 1), ["go"], [0])


@pytest.mark.parametrize(("name", "fields"), [("table", {}), ("edge", {"video": True, "fixed_positions": True,
                                                                       "cameras": ("a", "b")})])
def test_rows_have_the_same_layout(base: Path, name: str, fields: dict[str, Any]):
    domain = make_domain(name, 0, VOCABULARY, **fields)
    random = np.random.default_rng(0)
    windows, samples = [], []
    for count in (3, 1):
        text = np.asarray([2, *random.integers(4, 200, 3 + count)], np.int32)
        steps, torch_steps = [], []
        for _ in range(count):
            seen = tuple(random.integers(0, 256, (24, 24, 3), np.uint8) for _ in domain.cameras)
            assert domain.spec is not None
            state = domain.state.encode(STATE) if domain.state else np.zeros(0, np.int32)
            action = domain.spec.encode(random_values(domain.spec, random))
            steps.append(layout.Step(seen, state, action))
            torch_steps.append(torch_agent.Step(seen, state.tolist(), action.tolist()))
        windows.append(layout.Window(0, text, tuple(steps), 0, video=domain.video,
                                     first_position=domain.first_position))
        samples.append((text.tolist(), torch_steps))
    usages = [layout.window_usage(window, 10) for window in windows]
    frames, slots, targets = (max(getattr(usage, field) for usage in usages)
                              for field in ("frames", "slots", "targets"))
    size = RowSize(frames, 24, slots, targets)
    expected = layout.stack([layout.lay_out([window], size, 10, 9) for window in windows])
    codec = CODECS[f"{name} actions"]
    arguments: Any = (name, 3, 12, domain.first_position, domain.video, 24, domain.camera_names, codec, None, None)
    torch_domain = torch_agent.Domain(*arguments)
    for field, tensor in torch_agent.lay_out(torch_domain, samples, 9).items():
        np.testing.assert_array_equal(tensor.numpy(), getattr(expected, field), err_msg=field)


@pytest.mark.parametrize("kind", ["images", "clips"])  # the third kind is compared in f32 by its export
def test_in_float64_losses_and_gradients_agree_to_nine_digits(base: Path, kind: str):
    made, folder, _ = exported(base, kind)
    model = dataclasses.replace(made.config.model, dtype="float64")
    rows, batch = parity_rows(model, made.vocabulary, made.domains, 1 + model.vision.patches)
    assert len(rows) == len(made.domains)
    exact = jax.tree.map(lambda leaf: leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf, batch)
    with jax.enable_x64():
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), made.average)
        keys_B = jax.vmap(jax.random.key)(jnp.asarray(batch.seed_B))
        mask = random_mask(keys_B, jnp.asarray(batch.clip_BF), model.vision.patches, model.mae.mask_ratio)

        def loss(params: Any) -> jax.Array:
            output: Any = Agent(model).apply({"params": params}, exact, mask_keys_B=keys_B)
            weights = loss_weights(exact, len(made.domains), output.mask.hide_BFI.shape[-1])
            return total(loss_sums(output, exact, len(made.domains)), weights, made.config.loss)

        value, gradients = jax.jit(jax.value_and_grad(loss))(params)
        named = in_module(dict(to_tensors(jax.tree.map(np.asarray, gradients), model)))
    agent = torch_agent.Agent.load(folder, torch.float64)
    agent.mae.positions = agent.mae.positions.double()
    pixels = torch.from_numpy(np.array(patchify(jnp.asarray(batch.frames_BFHWC), model.vision.patch_size))).double()
    tensors = {name: tensor.double() if tensor.dtype == torch.float32 else tensor
               for name, tensor in as_torch(batch).items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        patch.setattr(agent, "patchify", lambda _: pixels)  # f32 in both; the rounding of a fused multiply-add differs
        output = agent(tensors, as_mask(mask))
        found = torch_agent.losses(output, tensors, agent.config["loss"])["total"]
    found.backward()
    np.testing.assert_allclose(found.item(), float(value), rtol=1e-9)
    compared = 0
    for name, parameter in agent.named_parameters():
        if parameter.grad is not None:
            scale = max(np.abs(named[name]).max(), 1e-3)
            np.testing.assert_allclose(parameter.grad.numpy() / scale, named[name] / scale, atol=1e-9, err_msg=name)
            compared += 1
    assert compared > 90


def test_it_overfits_a_batch(base: Path):
    made, folder, _ = exported(base, "images")
    agent = torch_agent.Agent.load(folder)
    torch.manual_seed(0)
    _, batch = parity_rows(made.config.model, made.vocabulary, made.domains, 1 + made.config.model.vision.patches)
    tensors, settings = as_torch(batch), {**agent.config["loss"], "form": "mean"}
    optimizer = torch.optim.AdamW(torch_agent.parameter_groups(agent, 0.05), lr=3e-3)
    agent.train()
    found = []
    for _ in range(40):
        mask = torch_agent.random_mask(tensors["clip_BF"], made.config.model.vision.patches, 0.75)
        step = torch_agent.losses(agent(tensors, mask), tensors, settings)
        optimizer.zero_grad()
        step["total"].backward()
        optimizer.step()
        found.append({name: value.item() for name, value in step.items()})
    for name in ("language", "action", "mae"):
        assert found[-1][name] < 0.5 * found[0][name], name
    fixed = agent.vision.embeddings.position_embedding.weight
    assert fixed.grad is None


def test_masks_hide_the_mask_ratio_and_are_the_same_within_a_clip():
    clip_BF = torch.tensor([[0, 0, 1, -1], [0, 1, 2, 3]])
    mask = torch_agent.random_mask(clip_BF, 16, 0.75, torch.Generator().manual_seed(0))
    assert mask.keep_BFJ.shape == (2, 4, 4)
    both = torch.cat([mask.keep_BFJ, mask.hide_BFI], dim=-1)
    assert torch.equal(both.sort(dim=-1)[0], torch.arange(16).expand(2, 4, 16))
    assert torch.equal(both.gather(-1, mask.restore_BFP), torch.arange(16).expand(2, 4, 16))
    assert torch.equal(mask.keep_BFJ[0, 0], mask.keep_BFJ[0, 1])
    assert not torch.equal(mask.keep_BFJ[1, 0], mask.keep_BFJ[1, 1])


def decays(agent: Any) -> set[str]:
    names = {id(parameter): name for name, parameter in agent.named_parameters()}
    [shrinking] = [group for group in torch_agent.parameter_groups(agent, 0.1) if group["weight_decay"]]
    return {names[id(parameter)] for parameter in shrinking["params"]}


def test_the_same_tensors_decay_as_in_ours(base: Path):
    from agent_jax.train.optimizer import decay_mask

    made, folder, _ = exported(base, "clips")
    shrinks = jax.tree.map(lambda leaf, decay: np.full(leaf.shape, decay), made.raw, decay_mask(made.raw))
    tensors = in_module(dict(to_tensors(shrinks, made.config.model)))
    expected = {name for name, tensor in tensors.items() if tensor.all()}
    assert decays(torch_agent.Agent.load(folder)) == expected


def test_visible_tokens_need_a_mask(base: Path):
    _, folder, _ = exported(base, "images")
    with pytest.raises(ValueError, match='visual_tokens="visible" needs a mask'):
        torch_agent.Agent.load(folder)({}, None, "visible")


def test_a_trained_agent_is_saved_in_a_new_folder(base: Path, tmp_path: Path):
    _, folder, _ = exported(base, "images")
    agent = torch_agent.Agent.load(folder)
    with torch.no_grad():
        agent.connector.bias += 1.0
    agent.save(tmp_path / "tuned", folder)
    again = torch_agent.Agent.load(tmp_path / "tuned")
    for name, parameter in agent.state_dict().items():
        assert torch.equal(parameter, again.state_dict()[name]), name
    assert not (tmp_path / "tuned/parity.json").exists()
    assert not (tmp_path / "tuned/README.md").exists()  # it reports the parity of other weights
    before = listing(tmp_path)
    with pytest.raises(FileExistsError, match="tuned exists already"):
        agent.save(tmp_path / "tuned", folder)
    assert listing(tmp_path) == before


def test_the_file_runs_without_jax_and_without_this_package(base: Path, tmp_path: Path):
    _, folder, _ = exported(base, "clips")
    shutil.copytree(folder, tmp_path / "copy")
    code = ("import sys\n"
            "for name in ('jax', 'flax', 'agent_jax', 'transformers', 'orbax'): sys.modules[name] = None\n"
            f"sys.argv = ['torch_agent.py', {str(tmp_path / 'copy')!r}]\n"
            "import runpy; runpy.run_path(sys.argv[1] + '/torch_agent.py', run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False,
                          cwd=tmp_path, env={"PATH": "", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "edge: an action [{'buttons'" in done.stdout
    assert done.stdout.count("edge: losses") == 2


def test_a_folder_whose_tensors_do_not_fit_is_refused(base: Path, tmp_path: Path):
    _, folder, _ = exported(base, "images")
    shutil.copytree(folder, tmp_path / "other")
    path = tmp_path / "other/agent.json"
    content = json.loads(path.read_text())
    content["config"]["model"]["mae"]["depth"] = 2
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"its tensors are not those that agent.json describes(.|\n)*mae.layers.1"):
        torch_agent.Agent.load(tmp_path / "other")


def test_the_exported_losses_use_every_weight():
    weights = {field.name for field in dataclasses.fields(LossConfig)} - {"form"}
    used = set(re.findall(r'config\["(\w+)"\]', inspect.getsource(torch_agent.losses)))
    assert weights <= used, "add the new loss to agent_jax/convert/pytorch/losses.py"
