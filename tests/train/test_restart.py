"""Where a run starts, on another mesh too; what a workdir refuses; the averaged parameters to act with."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import tarfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from data_stores import arm_store
from random_huggingface import save_vision
from small_runs import (
    Trained,
    copied,
    differing,
    flip_a_bit,
    listing,
    open_run,
    small_config,
    store_directory,
    straight_run,
)

from agent_jax.actions import BoundSpec
from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.checkpoints import checkpoint
from agent_jax.checkpoints import meta as checkpoint_meta
from agent_jax.checkpoints.checkpoint import Checkpoints, DamagedCheckpointError
from agent_jax.checkpoints.fingerprint import fingerprint
from agent_jax.checkpoints.restore import StepTaken, load_to_act, restore_acting_parameters
from agent_jax.config import (
    Config,
    DataConfig,
    DomainConfig,
    InitConfig,
    MeshConfig,
    PretrainedConfig,
    VocabularyConfig,
    presets,
)
from agent_jax.convert.grow.fields import EXECUTION, GROWN, TRAINING
from agent_jax.data.pipeline.domains import Domain
from agent_jax.evaluate import checkpoints as evaluate_checkpoints
from agent_jax.fields import by_name
from agent_jax.models.agent import abstract_params
from agent_jax.policy import Policy
from agent_jax.runtime.sharding import make_mesh
from agent_jax.train.loop import train
from agent_jax.train.optimizer import learning_rate_schedule, make_optimizer
from agent_jax.train.restart import Start, config_changes, start


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return straight_run(tmp_path_factory.getbasetemp())


def start_on_one_device(run: Trained, workdir: Path, vocabulary: Vocabulary | None = None,
                        domains: tuple[Domain, ...] = (), **changes: Any) -> Start:
    """The first state on one device of a run like `run`, in a workdir."""
    config = dataclasses.replace(run.run.config, **changes)
    optimizer = make_optimizer(config.optimizer, config.train.steps, abstract_params(config.model))
    checkpoints = Checkpoints(workdir / "checkpoints", keep_latest=1, keep_best=0)
    return start(config, make_mesh(MeshConfig(), jax.devices()[:1]), optimizer, vocabulary or run.run.data.vocabulary,
                 domains or run.run.data.domains, checkpoints)


def test_a_checkpoint_of_eight_devices_is_resumed_on_one_to_the_bit(straight: Trained):
    assert straight.run.mesh.size == 8
    found = start_on_one_device(straight, straight.workdir)
    assert list(differing(found.state, straight.state)) == []
    assert all(leaf.sharding.device_set == {jax.devices()[0]} for leaf in jax.tree.leaves(found.state))
    assert found.source == f"resumed from step 20 in {straight.workdir / 'checkpoints'}"
    assert found.data_state["rows"] == 20 * 8


def test_a_run_starts_from_its_own_checkpoint_another_run_pretrained_or_fresh(straight: Trained, tmp_path: Path):
    vision = tmp_path / "clip"
    save_vision(vision, image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                intermediate_size=32, hidden_act="relu")
    pretrained = PretrainedConfig(vision=str(vision))
    everything = InitConfig(checkpoint=str(straight.workdir / "checkpoints" / "10"), pretrained=pretrained)
    assert start_on_one_device(straight, straight.workdir, init=everything).source.startswith("resumed from step 20")

    other = start_on_one_device(straight, tmp_path, init=everything)
    step_10 = straight.workdir / "checkpoints" / "10"
    assert other.source == f"parameters from {step_10} (init.checkpoint)"
    assert (int(other.state.step), other.data_state) == (0, None)
    assert list(differing(other.state.acting_params, other.state.params)) == []
    assert list(differing(other.state.params, straight.state.params))

    third = start_on_one_device(straight, tmp_path, init=InitConfig(pretrained=pretrained))
    assert third.source.startswith("pretrained weights, the rest fresh (init.pretrained)\n")
    fresh = start_on_one_device(straight, tmp_path)
    assert fresh.source == "fresh parameters, seed 0"
    assert any("vision" in path for path in differing(third.state.params, fresh.state.params))
    assert not any("language" in path or "mae" in path for path in differing(third.state.params, fresh.state.params))
    assert not (tmp_path / "checkpoints").exists()


def test_a_workdir_of_another_config_is_refused_with_every_field_that_differs(straight: Trained):
    before = listing(straight.workdir)
    config = straight.run.config
    with pytest.raises(ValueError, match="belongs to another run; use the config it was begun with") as refusal:
        start_on_one_device(straight, straight.workdir, seed=4,
                            optimizer=dataclasses.replace(config.optimizer, learning_rate=0.5))
    lines = str(refusal.value).splitlines()[1:]
    assert lines == ["  config.optimizer.learning_rate: 0.01 there, 0.5 here", "  config.seed: 0 there, 4 here"]
    assert listing(straight.workdir) == before


def unpacked_run_of_format_2(root: Path, base: Path, to: Path) -> tuple[Config, Path]:
    """A run of 8 steps, of which 4 are done, as the last version that wrote format 2 left it; its config today."""
    with tarfile.open(root / "tests" / "fixtures" / "run_of_checkpoint_format_2.tar.gz") as archive:
        archive.extractall(to, filter="data")
    return small_config(store_directory(base), **{
        "train.steps": 8, "checkpoint.every": 4, "train.log_every": 1, "train.validate_every": 0,
        "train.compile_cache": ""}), to


def test_a_run_of_format_version_2_goes_on_with_the_same_numbers(root: Path, tmp_path: Path,
                                                                 tmp_path_factory: pytest.TempPathFactory):
    config, workdir = unpacked_run_of_format_2(root, tmp_path_factory.getbasetemp(), tmp_path / "run")
    before = checkpoint.read_meta(workdir / "checkpoints")
    assert (before["format_version"], before["step"]) == (2, 4)
    run = open_run(config, workdir)
    assert run.first.source == f"resumed from step 4 in {workdir / 'checkpoints'}"
    assert fingerprint(run.first.state) == {path: entry["sum"] for path, entry in before["fingerprint"].items()}
    train(run, *run.open_streams())
    # On the processor that wrote the run all bits are equal; another one's differ in the last ones.
    expected = json.loads((workdir / "losses.json").read_text())
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    losses = {str(line["step"]): line["loss"] for line in lines if line["split"] == "train" and line["step"] > 4}
    assert losses == pytest.approx(expected, rel=1e-5)
    assert checkpoint.read_meta(workdir / "checkpoints")["format_version"] == checkpoint.FORMAT_VERSION


def test_a_run_of_format_version_1_is_resumed_and_acts(root: Path, tmp_path: Path,
                                                       tmp_path_factory: pytest.TempPathFactory):
    config, workdir = unpacked_run_of_format_2(root, tmp_path_factory.getbasetemp(), tmp_path / "old")
    saved = checkpoint.read_meta(workdir / "checkpoints")["fingerprint"]
    for path in (workdir / "checkpoints").glob("*/meta/data.json"):
        meta = json.loads(path.read_text())
        for domain in (meta["domains"]["tiles"], meta["config"]["data"]["domains"]["tiles"]):
            (domain["image"],) = domain.pop("cameras")
            for name in ("layout", "sampling", "answer", "max_answer", "label"):
                del domain[name]
        del meta["config"]["model"]["classes"], meta["config"]["loss"]["label"]
        meta |= {"format_version": 1}
        path.write_text(json.dumps({**meta, "checksum": checkpoint_meta._checksum(meta)}))
    run = open_run(config, workdir)
    assert run.first.source.startswith("resumed from step 4")
    assert fingerprint(run.first.state) == {path: entry["sum"] for path, entry in saved.items()}
    assert Policy.load(workdir).domain.to_meta() == run.data.domains[0].to_meta()


def test_a_policy_acts_with_the_averaged_parameters_of_format_version_2(root: Path, tmp_path: Path,
                                                                        tmp_path_factory: pytest.TempPathFactory):
    _, workdir = unpacked_run_of_format_2(root, tmp_path_factory.getbasetemp(), tmp_path / "run")
    saved = checkpoint.read_meta(workdir / "checkpoints")["fingerprint"]
    acting = {f"averaged/{path}": value for path, value in fingerprint(load_to_act(workdir).params).items()}
    averaged = {path: value for path, value in acting.items() if path in saved}
    assert averaged == {path: entry["sum"] for path, entry in saved.items() if path.startswith("averaged/")}
    frozen = "vision/patch_embedding/kernel"
    assert acting.keys() - averaged.keys() == {f"averaged/{frozen}"}
    assert acting[f"averaged/{frozen}"] == saved[f"params/{frozen}"]["sum"]


def test_a_workdir_of_another_vocabulary_is_refused(straight: Trained):
    before = listing(straight.workdir)
    with pytest.raises(ValueError, match=r"another vocabulary .*blocks: babyai, iafm here, babyai there"):
        start_on_one_device(straight, straight.workdir, Vocabulary.build("bytes", ("babyai", "iafm")))
    assert listing(straight.workdir) == before


def test_a_workdir_of_another_action_spec_is_refused(straight: Trained):
    before = listing(straight.workdir)
    domain = straight.run.data.domains[0]
    faster = dataclasses.replace(domain.spec.spec, rate_hz=domain.spec.spec.rate_hz + 7)
    with pytest.raises(ValueError, match=r"domain 'tiles' was trained with another ActionSpec .*rate_hz"):
        start_on_one_device(straight, straight.workdir,
                            domains=(dataclasses.replace(domain, spec=BoundSpec(faster, domain.vocabulary)),))
    assert listing(straight.workdir) == before


def arm_config(store: Path) -> Config:
    """A run on `arm_store` with bounds from the data and a vocabulary block of its own."""
    spec = presets.arm_spec("my_arm", names=("dx", "grip"), bounds="quantiles", count=21)
    domain = DomainConfig(path=str(store), action_spec=spec, window=2, stride=2, max_text=16)
    return dataclasses.replace(small_config(store), vocabulary=VocabularyConfig(blocks=("my_arm",)),
                               data=DataConfig(domains={"arm": domain}))


def test_bounds_found_in_the_data_are_those_of_the_checkpoint_and_other_data_are_refused(tmp_path: Path):
    values = np.linspace((-1.0, 0.0), (1.0, 5.0), 101)
    config = arm_config(tmp_path / "data")
    arm_store(tmp_path / "data", [values])
    run = open_run(config, tmp_path / "run")
    with run.checkpoints:
        run.save(run.first.state, None, None)
    shutil.rmtree(tmp_path / "data")
    arm_store(tmp_path / "data", [values * [1.0, 1.1]])
    before = listing(tmp_path / "run")
    with pytest.raises(ValueError, match=r"'arm' was trained with another ActionSpec .*parts\[1\].low: 0.0549\d+ here"):
        open_run(config, tmp_path / "run")
    assert listing(tmp_path / "run") == before

    shutil.rmtree(tmp_path / "data")  # acting needs neither the data nor the config
    policy = Policy.load(tmp_path / "run")
    assert policy.domain.spec is not None
    low, high = policy.domain.spec.spec.bounds("action")
    np.testing.assert_allclose([low, high], np.quantile(values, [0.01, 0.99], axis=0), rtol=1e-6)
    (action,) = policy.act([np.zeros((8, 8, 3), np.uint8)], ["lift"], [0])
    assert np.all((low <= action["action"]) & (action["action"] <= high + (high - low) / 40))


def test_how_a_run_is_carried_out_may_change_and_what_it_computes_may_not():
    there = {"mesh": {"data": 1}, "train": {"steps": 3, "log_every": 1}, "meshes": 1, "optimizer": {"freeze": ("a",)}}
    here = {"mesh": {"data": 8}, "train": {"steps": 4, "log_every": 2}, "meshes": 2, "optimizer": {"freeze": ["a"]}}
    assert config_changes(there, here) == {"config.meshes": (1, 2)}  # and a run may become longer, not shorter
    assert config_changes(here, there) == {"config.meshes": (2, 1), "config.train.steps": (4, 3)}


def test_a_workdir_is_gone_on_with_as_a_longer_run_and_not_as_a_shorter_one(straight: Trained):
    train = straight.run.config.train
    found = start_on_one_device(straight, straight.workdir, train=dataclasses.replace(train, steps=30, log_every=7))
    rate = float(learning_rate_schedule(straight.run.config.optimizer, 30)(20))  # of the update that comes next
    assert found.source == (
        f"resumed from step 20 in {straight.workdir / 'checkpoints'}; config.train.steps was 20 and is 30: from here "
        "on the learning rate is that of a run of 30 steps, warm-up and decay included "
        f"({rate:.3g} at the next step, where the run of 20 was over)")
    assert list(differing(found.state, straight.state)) == []
    with pytest.raises(ValueError, match=r"use the config it was begun with, or another --workdir") as refusal:
        start_on_one_device(straight, straight.workdir, train=dataclasses.replace(train, steps=19))
    assert str(refusal.value).endswith("\n  config.train.steps: 20 there, 19 here (it may grow)")


def test_acting_parameters_are_the_averaged_ones_and_the_live_ones_where_frozen(straight: Trained):
    params = restore_acting_parameters(straight.workdir / "checkpoints", straight.run.config)
    assert list(differing(params, straight.state.acting_params)) == []
    frozen, live = "['vision']['patch_embedding']['kernel']", list(differing(params, straight.state.params))
    assert frozen not in live
    assert len(live) > 20


def test_what_acts_takes_the_step_before_a_damaged_one_and_says_so(straight: Trained, tmp_path: Path, caplog):
    workdir = copied(straight.workdir, tmp_path / "run")
    flip_a_bit(workdir / "checkpoints" / "20")
    before = listing(workdir)
    with caplog.at_level(logging.WARNING, logger="absl"):
        policy = Policy.load(workdir)
    assert policy.taken == StepTaken(workdir / "checkpoints", 10, (20,))
    assert policy.with_temperature(0.5).taken == policy.taken
    assert list(differing(policy.params, Policy.load(straight.workdir, step=10).params)) == []
    (line,) = [record.getMessage() for record in caplog.records if record.name == "absl"]
    assert line.startswith(f"Step 10 of {workdir / 'checkpoints'} is taken. Passed over as damaged: checkpoint ")
    assert "\n" not in line
    trained = evaluate_checkpoints.TrainedRun.load(workdir)
    assert (trained.step, trained.passed_over) == (10, (20,))
    assert list(differing(trained.params(), load_to_act(straight.workdir, 10).params)) == []
    assert load_to_act(workdir, averaged=False).taken.step == 10
    for path, step in ((workdir, 20), (workdir / "checkpoints" / "20", None)):  # a step that was named is no other
        for load in (Policy.load, evaluate_checkpoints.TrainedRun.load):
            with pytest.raises(DamagedCheckpointError, match="20 is damaged"):
                load(path, step=step)
    assert listing(workdir) == before


def test_parameters_of_another_run_are_those_of_its_newest_whole_step(straight: Trained, tmp_path: Path):
    workdir = copied(straight.workdir, tmp_path / "other")
    flip_a_bit(workdir / "checkpoints" / "20")
    found = start_on_one_device(straight, tmp_path / "new", init=InitConfig(checkpoint=str(workdir)))
    assert found.source == (f"parameters from {workdir / 'checkpoints' / '10'} (init.checkpoint); damaged newer steps "
                          "were passed over: 20")
    named = InitConfig(checkpoint=str(straight.workdir / "checkpoints" / "10"))
    expected = start_on_one_device(straight, tmp_path / "new", init=named)
    assert list(differing(found.state.params, expected.state.params)) == []


def test_nothing_to_act_by_is_an_error_and_a_whole_run_passes_nothing_over(straight: Trained, tmp_path: Path):
    assert load_to_act(straight.workdir).taken == StepTaken(straight.workdir / "checkpoints", 20)
    workdir = copied(straight.workdir, tmp_path / "run")
    for step in ("10", "20"):
        flip_a_bit(workdir / "checkpoints" / step)
    with pytest.raises(DamagedCheckpointError, match=r"(?s)every checkpoint .*20 is damaged.*10 is damaged"):
        load_to_act(workdir)


def test_acting_parameters_without_an_average_are_the_live_ones(straight: Trained, tmp_path: Path):
    config = dataclasses.replace(straight.run.config,
                                 optimizer=dataclasses.replace(straight.run.config.optimizer, ema=0.0))
    meta = {"config": {}, "data_state": None}
    with Checkpoints(tmp_path, keep_latest=1, keep_best=0) as checkpoints:
        checkpoints.save(1, {"params": straight.state.params}, meta)
    assert list(differing(restore_acting_parameters(tmp_path, config), straight.state.params)) == []


def grown_config(straight: Trained, vocabulary: Vocabulary, **init: Any) -> dict[str, Any]:
    """Changes to the straight run: another vocabulary and more positions, from the straight run's parameters."""
    model = straight.run.config.with_vocabulary_size(vocabulary.size).model
    language = dataclasses.replace(model.language, positions=80)
    init = {"checkpoint": str(straight.workdir), "more_positions": True, **init}
    return {"model": dataclasses.replace(model, language=language), "init": InitConfig(**init)}


def test_parameters_of_another_vocabulary_and_row_length_are_grown_on_the_mesh(straight: Trained, tmp_path: Path):
    vocabulary = Vocabulary.build("bytes", ("iafm", "babyai"))
    config = dataclasses.replace(straight.run.config, **grown_config(straight, vocabulary))
    optimizer = make_optimizer(config.optimizer, config.train.steps, abstract_params(config.model))
    found = start(config, straight.run.mesh, optimizer, vocabulary, straight.run.data.domains,
                  Checkpoints(tmp_path / "checkpoints", keep_latest=1, keep_best=0))
    old, new = (tree["language"] for tree in (straight.state.params, found.state.params))
    there, here = straight.run.data.vocabulary.block_range("babyai"), vocabulary.block_range("babyai")
    for a, b in ((slice(260), slice(260)), (slice(there.start, there.stop), slice(here.start, here.stop))):
        np.testing.assert_array_equal(old["token_embedding"][a], new["token_embedding"][b])
    assert all(leaf.sharding.mesh.size == 8 for leaf in jax.tree.leaves(found.state.params))
    for part in ("vision", "connector", "mae"):
        assert list(differing(found.state.params[part], straight.state.params[part])) == []
    for words in ("config.model.language.positions: 64 there, 80 here", "(init.checkpoint)\n",
                  "269 of 1,582 tokens carried by name"):
        assert words in found.source


@pytest.mark.parametrize(("weights", "words"), [("raw", "20 ("), ("averaged", "20, averaged parameters (")])
def test_the_averaged_parameters_of_another_run_are_taken_on_request(straight: Trained, tmp_path: Path, weights: str,
                                                                    words: str):
    init = InitConfig(checkpoint=str(straight.workdir), weights=weights)  # type: ignore[arg-type]
    found = start_on_one_device(straight, tmp_path, init=init)
    expected = straight.state.params if weights == "raw" else straight.state.acting_params
    assert list(differing(found.state.params, expected)) == []
    assert found.source.startswith(f"parameters from {straight.workdir / 'checkpoints'}/{words}init.checkpoint)")


@pytest.mark.parametrize(("field", "value"), [  # none changes the shape of a parameter
    ("vision.heads", 1), ("vision.activation", "gelu"), ("vision.layer_norm_eps", 1e-6), ("vision.positions", "sincos"),
    ("language.heads", 1), ("language.activation", "gelu"), ("language.layer_norm_eps", 1e-6),
])
def test_parameters_of_a_model_that_computes_something_else_are_not_taken_over(straight: Trained, tmp_path: Path,
                                                                              field: str, value: Any):
    part, name = field.split(".")
    model = straight.run.config.model
    other = dataclasses.replace(model, **{part: dataclasses.replace(getattr(model, part), **{name: value})})
    with pytest.raises(ValueError, match="config.init.checkpoint") as refusal:
        start_on_one_device(straight, tmp_path, init=InitConfig(checkpoint=str(straight.workdir)), model=other)
    (line,) = str(refusal.value).splitlines()[1:]
    there = getattr(getattr(model, part), name)
    assert line == f"  config.model.{field}: {there!r} there, {value!r} here"


def test_parameters_may_be_trained_in_another_way_and_the_log_says_how(straight: Trained, tmp_path: Path):
    model = straight.run.config.model
    other = dataclasses.replace(model, visual_tokens="visible", remat="full", attention="xla",
                                mae=dataclasses.replace(model.mae, mask_ratio=0.5))
    found = start_on_one_device(straight, tmp_path, init=InitConfig(checkpoint=str(straight.workdir)), model=other)
    assert list(differing(found.state.params, straight.state.params)) == []
    for words in ("config.model.visual_tokens: 'all' there, 'visible' here", "mae.mask_ratio: 0.75 there, 0.5 here"):
        assert words in found.source
    assert "remat" not in found.source


def test_every_field_of_the_model_is_compared_when_parameters_are_taken_over(straight: Trained):
    meta = {"config": dataclasses.asdict(straight.run.config)}
    allowed = (EXECUTION, TRAINING, GROWN)
    refused = {name for name in by_name(meta["config"]["model"]) if not any(one.fullmatch(name) for one in allowed)}
    assert refused == {
        *(f"{part}.{field}" for part in ("vision", "language")
          for field in ("width", "depth", "heads", "mlp_width", "activation", "layer_norm_eps")),
        "vision.patch_size", "vision.positions"}


def test_a_missing_init_checkpoint_is_refused_before_anything_is_written(tmp_path_factory: pytest.TempPathFactory,
                                                                        tmp_path: Path):
    store = store_directory(tmp_path_factory.getbasetemp())
    with pytest.raises(ValueError, match=r"config.init.checkpoint=.*nowhere: not found; .*pass another --config"):
        open_run(small_config(store, **{"init.checkpoint": str(tmp_path / "nowhere")}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_data_of_any_name_may_have_moved():
    there, here = ({"data": {"domains": {"my-arm.v2": {"path": path, "stride": 1}}}} for path in ("a", "b"))
    assert config_changes(there, here) == {}
    here["data"]["domains"]["my-arm.v2"]["stride"] = 2
    assert config_changes(there, here) == {"config.data.domains.my-arm.v2.stride": (1, 2)}
