"""The search over meshes, remat policies and microbatches: which candidates it tries, in which order."""

import dataclasses
import math

import jax
import pytest

from agent_jax.batch import RowSize
from agent_jax.config import Config, DataConfig, DomainConfig, LanguageConfig, MaeConfig, ModelConfig, VisionConfig
from agent_jax.plan.compiled import DoesNotFitError, compile_step
from agent_jax.plan.roofline import roofline
from agent_jax.plan.row import PlannedRow
from agent_jax.plan.search import Candidate, fastest, mesh_shapes, outcome_line, search
from agent_jax.plan.topology import find_topology
from agent_jax.runtime.sharding import make_mesh

SIZES = {"width": 16, "depth": 1, "heads": 4, "mlp_width": 32}
ROW = RowSize(frames=1, image_size=16, slots=24, targets=4)


def make_config():
    model = ModelConfig(vision=VisionConfig(image_size=16, patch_size=4, **SIZES), mae=MaeConfig(**SIZES),
                        language=LanguageConfig(positions=24, vocabulary_size=70, vocabulary_multiple=8, **SIZES))
    return Config(model=model, data=DataConfig(domains={"one": DomainConfig()}))


def tried(outcomes):
    return [(one.candidate.mesh, one.candidate.remat, one.candidate.accumulation) for one in outcomes]


def found(evaluate, batch=8, devices=2, seconds=600.0):
    topology = find_topology(f"a100-{devices}")
    return list(search(make_config(), topology, jax.devices()[:devices], [batch], evaluate, seconds))


@pytest.fixture(scope="module")
def compiled():
    """Every candidate, compiled for two devices."""
    topology = find_topology("a100-2")

    def evaluate(config):
        step = compile_step(config, PlannedRow(ROW, config, ()), jax.devices()[:2], "fake devices")
        return step, roofline(step, topology, config.train.batch_size, 0.4)

    return found(evaluate)


@pytest.mark.slow
def test_every_mesh_is_compiled_and_the_fastest_that_fits_comes_first(compiled):
    assert tried(compiled) == [((1, 2, 1, 1), "none", 1), ((1, 1, 2, 1), "none", 1), ((1, 1, 1, 2), "none", 1)]
    assert [one.said for one in compiled] == ["fits"] * 3
    best = fastest(compiled)
    assert [one.frames_per_second for one in best] == sorted((one.frames_per_second for one in compiled), reverse=True)
    assert best[-1].candidate.mesh == (1, 1, 1, 2)  # summing activations costs more than summing gradients
    assert all(one.memory_bytes > 0 and one.step_seconds > 0 and one.compile_seconds > 0 for one in compiled)


def refusing(fits, needed=0):
    """A compiler for which only some configs fit."""

    def evaluate(config):
        if not fits(config):
            raise DoesNotFitError("needs more than there is", needed)
        raise AssertionError("not reached in these tests")

    return evaluate


def test_if_nothing_fits_microbatches_are_halved_and_then_remat_is_stronger():
    outcomes = found(refusing(lambda config: False), batch=8)
    first = [one for one in tried(outcomes) if one[0] == (1, 2, 1, 1)]
    assert first == [((1, 2, 1, 1), remat, count) for remat in ("none", "dots", "full") for count in (1, 2, 4)]
    assert not fastest(outcomes)
    assert all(one.said.startswith("does not fit: needs more than there is") for one in outcomes)


def test_a_step_far_too_large_skips_microbatches_that_cannot_fit():
    hbm = int(find_topology("a100-2").chip.hbm_bytes)
    outcomes = found(refusing(lambda config: False, needed=3 * hbm), batch=24)
    assert [count for mesh, remat, count in tried(outcomes) if (mesh, remat) == ((1, 2, 1, 1), "none")] == [1, 3, 12]


def test_a_batch_that_does_not_divide_is_reported_and_not_tried_again():
    outcomes = found(refusing(lambda config: False), batch=1)
    assert [one.said for one in outcomes if one.candidate.mesh == (1, 2, 1, 1)] == [
        "does not divide: config.train.batch_size=1 does not divide by 2 (mesh data 2 x fsdp 1 x "
        "config.train.accumulation 1)"]
    assert "does not divide" in outcome_line(outcomes[0])


def test_a_state_that_does_not_fit_is_not_compiled():
    small = dataclasses.replace(find_topology("a100-2").chip, hbm_bytes=1000)
    topology = dataclasses.replace(find_topology("a100-2"), chip=small)
    outcomes = list(search(make_config(), topology, jax.devices()[:2], [8], refusing(lambda config: False), 600.0))
    assert [one.said.split(" needs")[0] for one in outcomes] == ["state alone"] * 3


def test_the_search_ends_in_time_and_counts_what_is_left():
    (outcome,) = found(refusing(lambda config: False), seconds=-1.0)
    assert outcome.said == "no time left for this and up to 8 more"


def test_meshes_without_a_tensor_axis_come_first_and_all_use_every_device():
    shapes = mesh_shapes(16)
    assert shapes[:5] == [(1, 16, 1, 1), (1, 8, 2, 1), (1, 4, 4, 1), (1, 2, 8, 1), (1, 1, 16, 1)]
    assert all(math.prod(shape) == 16 for shape in [*shapes, *mesh_shapes(16, slices=2)])
    assert len(set(shapes)) == len(shapes)
    assert {shape[0] for shape in mesh_shapes(16, slices=2)} == {2}


def test_a_candidate_changes_only_mesh_remat_and_batch():
    config = make_config()
    changed = Candidate((1, 1, 2, 1), "full", 16, 4).of(config)
    assert (changed.mesh.fsdp, changed.model.remat, changed.train.accumulation) == (2, "full", 4)
    back = dataclasses.replace(
        changed, mesh=config.mesh, train=config.train, model=dataclasses.replace(changed.model, remat="none"))
    assert back == config


def test_a_mesh_that_does_not_fit_the_torus_is_reported_and_the_search_goes_on(monkeypatch):
    def unwired(config, devices):
        if config.fsdp == 2:
            raise ValueError("config.mesh.fsdp=2 does not fit the torus")
        return make_mesh(config, devices)

    monkeypatch.setattr("agent_jax.plan.search.make_mesh", unwired)
    outcomes = found(refusing(lambda config: False))
    assert [one.said for one in outcomes if one.candidate.mesh == (1, 1, 2, 1)] == [
        "does not divide: config.mesh.fsdp=2 does not fit the torus"]
    assert outcomes[-1].candidate.mesh == (1, 1, 1, 2)
