"""The specs of a data set: bounds found in its train split, bounds that coincide, and what checkpoints store."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_stores import arm_store

from agent_jax.actions import ActionSpec
from agent_jax.actions.declarations import vocabulary_blocks
from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.config import DomainConfig, presets
from agent_jax.data.pipeline.domain_specs import DomainSpecs, find_specs, not_too_narrow
from agent_jax.data.pipeline.domains import Domain

RNG = np.random.default_rng(0)
VALUES = RNG.normal((0.0, 5.0, 1.0), (1.0, 0.5, 0.0), (400, 3)).astype(np.float32)  # the last is constant
VALUES[:, 2] = 1.0
NAMES = ("dx", "dy", "grip")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_JAX_CACHE", str(tmp_path / "cache"))


def arm(**fields: Any) -> dict[str, Any]:
    return presets.arm_spec("arm", names=NAMES, count=21, **fields)


def found(directory: Path, spec: dict[str, Any], values: np.ndarray = VALUES, metadata: Any = None,
          **fields: Any) -> DomainSpecs:
    store = arm_store(directory, [values[:100], values[100:]], metadata=metadata)
    return find_specs("mine", DomainConfig(action_spec=spec, **fields), store)


def limits(specs: DomainSpecs) -> np.ndarray:
    return np.asarray([part.limits[0] for part in specs.action.parts])


@pytest.mark.parametrize(("bounds", "low", "high"), [
    ("min_max", VALUES.min(axis=0), VALUES.max(axis=0)),
    ("quantiles", np.quantile(VALUES, 0.01, axis=0), np.quantile(VALUES, 0.99, axis=0)),
    ("mean_3std", *(VALUES.mean(axis=0, dtype=float) + sign * 3 * VALUES.std(axis=0, dtype=float) for sign in (-1, 1))),
])
def test_open_bounds_are_those_of_the_train_split(tmp_path, bounds, low, high):
    specs = found(tmp_path / "set", arm(bounds=bounds))
    np.testing.assert_allclose(limits(specs)[:2], np.stack([low, high], 1)[:2], rtol=1e-6)
    assert specs.action.to_dict() == arm(low=limits(specs)[:, 0].tolist(), high=limits(specs)[:, 1].tolist())


def test_a_part_may_ask_for_other_quantiles(tmp_path):
    spec = arm(bounds="quantiles")
    spec["groups"][0]["parts"][1]["quantiles"] = [0.05, 0.95]
    expected = np.quantile(VALUES[:, 1], [0.05, 0.95])
    np.testing.assert_allclose(limits(found(tmp_path / "set", spec))[1], expected, rtol=1e-6)
    spec["groups"][0]["parts"][1]["quantiles"] = [0.03, 0.95]
    with pytest.raises(ValueError, match=r"the quantiles of 'action\[1\] \(dy\)' are \(0.03, 0.95\), expected two of"):
        found(tmp_path / "other", spec)


def test_a_constant_gets_a_margin_and_a_warning(tmp_path, caplog):
    specs = found(tmp_path / "set", arm(bounds="mean_3std"))
    np.testing.assert_allclose(limits(specs)[2], [0.999, 1.001])
    for found_text in ("config.data.domains.mine.action_spec", "'action[2] (grip)' by mean_3std", "[0.999, 1.001]"):
        assert found_text in caplog.text
    assert "'action[0]" not in caplog.text
    zero = VALUES * np.float32([1, 1, 0])
    np.testing.assert_allclose(limits(found(tmp_path / "zero", arm(bounds="min_max"), zero))[2], [-1e-3, 1e-3])


def test_the_descriptions_of_widened_bounds_are_frozen():
    """Checkpoints store and hash them."""
    assert not_too_narrow(1.0, 1.0, 1.0, 1.0)[2] == "coincide, for it hardly varies; they are 0.001 to either side"
    assert not_too_narrow(1.0, 1.0, -1.0, 1.0)[2] == "nearly coincide, so they are the least and greatest value"
    assert not_too_narrow(0.0, 1.0, -1.0, 1.0)[2] == ""


def test_quantiles_that_coincide_are_widened_to_all_values(tmp_path, caplog):
    rare = VALUES.copy()
    rare[7, 2] = -1.0
    specs = found(tmp_path / "set", arm(bounds="quantiles"), rare)
    np.testing.assert_array_equal(limits(specs)[2], [-1, 1])
    assert "'action[2] (grip)' by quantiles nearly coincide" in caplog.text


def test_declared_bounds_need_no_pass_over_the_data_and_no_normalisation(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    specs = found(tmp_path / "set", arm(low=-1, high=2))
    assert not list((tmp_path / "cache").glob("*"))
    assert specs.normalisation == {}


def test_the_domain_stores_method_statistics_and_a_hash_of_both(tmp_path):
    specs = found(tmp_path / "set", arm(bounds="quantiles"))
    stored = specs.normalisation
    assert json.loads(json.dumps(stored)) == stored
    part = stored["parts"]["action action[0]"]
    assert (part["method"], part["quantiles"], part["steps"]) == ("quantiles", [0.01, 0.99], 400)
    assert [part["low"], part["high"]] == limits(specs)[0].tolist()
    np.testing.assert_allclose(part["mean"], VALUES[:, 0].mean(), rtol=1e-5)
    assert part["data"] == specs.numbers.statistics["action"].data_hash
    hashes = {stored["hash"], found(tmp_path / "copy", arm(bounds="quantiles")).normalisation["hash"]}
    assert len(hashes) == 1  # the directory does not matter
    one_more = VALUES.copy()
    one_more[3, 0] += 1e-3
    hashes |= {found(tmp_path / "data", arm(bounds="quantiles"), one_more).normalisation["hash"],
               found(tmp_path / "method", arm(bounds="min_max")).normalisation["hash"]}
    assert len(hashes) == 3

    store = arm_store(tmp_path / "last", [VALUES])
    vocabulary = Vocabulary.build("bytes", vocabulary_blocks(("arm",), [specs.action.to_dict()]))
    config = DomainConfig(action_spec=arm(bounds="quantiles"))
    domain = Domain.from_config("mine", 0, config, store, vocabulary, 16, find_specs("mine", config, store))
    meta = json.loads(json.dumps(domain.to_meta()))
    assert meta["normalisation"]["parts"]["action action[0]"]["method"] == "quantiles"
    again = Domain.from_meta(meta, vocabulary)
    assert again.to_meta() == domain.to_meta()
    assert again.spec is not None
    assert again.spec.spec == specs.action  # plain numbers
    del meta["normalisation"]  # as in an older checkpoint
    assert Domain.from_meta(meta, vocabulary).normalisation == {}


def test_open_bounds_of_the_data_set_must_agree_with_those_of_the_config(tmp_path):
    metadata = {"action_spec": arm(bounds="min_max"), "rate_hz": 5.0}
    specs = found(tmp_path / "set", {}, metadata=metadata)
    np.testing.assert_allclose(limits(specs)[0], [VALUES[:, 0].min(), VALUES[:, 0].max()], rtol=1e-6)
    assert (specs.configured, specs.rate_hz) == (frozenset(), 5.0)
    numbers = limits(specs).T.tolist()
    same = found(tmp_path / "same", arm(low=numbers[0], high=numbers[1]), metadata=metadata)
    assert same.action == specs.action
    with pytest.raises(ValueError, match=r"action_spec: differs from .* \(there\): groups.*low: .* leave it empty"):
        found(tmp_path / "other", arm(bounds="quantiles"), metadata=metadata)


def test_states_are_normalised_as_actions_are(tmp_path):
    state = presets.state_spec("arm", names=NAMES, key="state", bounds="min_max")
    specs = found(tmp_path / "set", arm(low=-9, high=9), state_spec=state)
    assert specs.state is not None
    np.testing.assert_allclose(specs.state.bounds("state")[1][:2], VALUES.max(axis=0)[:2], rtol=1e-6)
    assert set(specs.normalisation["parts"]) == {f"state state[{index}]" for index in range(3)}


def test_a_malformed_spec_is_named_by_its_field(tmp_path):
    spec = arm(bounds="min_max")
    del spec["groups"][0]["parts"][0]["prefix"]
    with pytest.raises(ValueError, match=r"parts\[0\].prefix: missing"):
        found(tmp_path / "set", spec)
    wider = presets.arm_spec("arm", names=("a", "b", "c", "d"), bounds="min_max")
    with pytest.raises(ValueError, match=r"shape \(4,\) for 'action'; found an array of shape \(3,\)"):
        found(tmp_path / "wider", wider)
    assert ActionSpec.from_dict(arm(low=0, high=1)).fields["action"][0] == (3,)
