"""Checkpoints and fingerprints: exact on any mesh, and what happens when files are damaged, disks full, runs killed."""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import resource
import shutil
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from agent_jax.checkpoints.checkpoint import (
    FORMAT_VERSION,
    Checkpoints,
    DamagedCheckpointError,
    locate,
    read_meta,
    restore_parameters,
    steps,
)
from agent_jax.checkpoints.fingerprint import fingerprint
from agent_jax.checkpoints.retention import Retention, rank

# Orbax 0.12 abandons coroutines, and with uvloop their event loop, when it fails to read a damaged file.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]

META = {"config": {"seed": 3, "window": [1, 2]}, "data_state": {"index": 7}}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """The form of a TrainState."""

    step: Any
    params: Any
    opt_state: Any


def make_state(step: int) -> State:
    """Different in every step; f32, bf16, int32, uint32, bool, and optax's named tuples, empty ones among them."""
    key = jax.random.fold_in(jax.random.key(0), step)
    params = {"vision": {"kernel": jax.random.normal(key, (16, 24)), "scale": jnp.full(8, step, jnp.bfloat16)},
              "language": {"token_embedding": jax.random.normal(key, (64, 16))}}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    extra = {"key": jnp.arange(2, dtype=jnp.uint32) + step, "mask": jnp.array([True, False, step % 2 == 0])}
    return State(jnp.int32(step), params, (optimizer.init(params), extra))


def abstract_of(tree: Any, sharding: Any = None) -> Any:
    """ShapeDtypeStructs, all with one sharding: by default on the first device."""
    sharding = sharding or SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def assert_same(found: Any, expected: Any) -> None:
    """Same structure, dtypes and bits."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def open_checkpoints(directory: Path, keep_latest: int = 5, keep_best: int = 0) -> Checkpoints:
    return Checkpoints(directory, keep_latest=keep_latest, keep_best=keep_best)


def tree_of(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 1 and 2, never written to: tests copy it."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    with open_checkpoints(directory) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make_state(step), META, {"validation/loss": 1.0 / step})
    return directory


@pytest.fixture
def directory(saved: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it, for tests that write or damage files."""
    yield Path(shutil.copytree(saved, tmp_path / "checkpoints"))
    gc.collect()  # what Orbax leaves behind must not be found in the test of another module


def test_restore_gives_back_every_bit_and_the_meta(saved: Path):
    step, state, meta = open_checkpoints(saved).restore(abstract_of(make_state(0)))
    assert step == 2
    assert_same(state, make_state(2))
    assert {key: meta[key] for key in META} == META
    assert meta["format_version"] == FORMAT_VERSION
    assert meta["step"] == 2
    assert meta["metrics"] == {"validation/loss": 0.5}


def test_an_empty_or_missing_directory_restores_nothing(tmp_path: Path):
    assert open_checkpoints(tmp_path).restore(abstract_of(make_state(0))) is None
    assert open_checkpoints(tmp_path / "none").restore(abstract_of(make_state(0))) is None


def test_arrays_may_be_donated_right_after_save(tmp_path: Path):
    state = {"params": {"w": jax.random.normal(jax.random.key(1), (1 << 18,))}}
    expected = jax.tree.map(np.array, state)
    with open_checkpoints(tmp_path) as checkpoints, jax.transfer_guard("disallow"):
        checkpoints.save(1, state, META)
        jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 - 1, tree), donate_argnums=0)(state)
    assert_same(open_checkpoints(tmp_path).restore(abstract_of(state))[1], expected)


def meshes() -> Iterator[tuple[str, Any]]:
    eight = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    yield "one device", SingleDeviceSharding(jax.devices()[3])
    yield "replicated", NamedSharding(eight, PartitionSpec())
    yield "rows", NamedSharding(eight, PartitionSpec("fsdp"))
    yield "both axes", NamedSharding(eight, PartitionSpec("fsdp", "data"))
    yield "one axis over all", NamedSharding(eight, PartitionSpec(("data", "fsdp")))


def test_eight_devices_restore_on_one_and_one_on_eight(tmp_path: Path):
    values = {"params": {"w": np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)}}
    expected = fingerprint(jax.device_put(values, jax.devices()[0]))
    for number, (name, before) in enumerate(meshes()):
        state = jax.device_put(values, before)
        assert fingerprint(state) == expected, name
        with open_checkpoints(tmp_path / str(number)) as checkpoints:
            checkpoints.save(1, state, META)
        for other, after in meshes():
            _, found, _ = open_checkpoints(tmp_path / str(number)).restore(abstract_of(state, after))
            assert_same(found, values)
            assert found["params"]["w"].sharding == after, (name, other)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "int8", "uint16", "uint32", "bool"])
def test_one_flipped_bit_changes_the_fingerprint(dtype: str):
    values = np.random.default_rng(0).integers(0, 2, (3, 5)).astype(jnp.dtype(dtype))
    original = fingerprint({"x": jnp.asarray(values)})["x"]
    for element in range(values.size):
        for bit in range(1 if dtype == "bool" else values.itemsize * 8):
            altered = np.array(values)
            altered.view(f"uint{values.itemsize * 8}").reshape(-1)[element] ^= 1 << bit
            assert fingerprint({"x": jnp.asarray(altered)})["x"] != original


def test_fingerprint_depends_on_the_place_of_a_value():
    values = jnp.arange(12, dtype=jnp.float32).reshape(3, 4)
    others = (values[::-1], values[:, ::-1], values.at[0, 0].set(-0.0))
    assert len({fingerprint([array])["0"] for array in (values, *others)}) == 4


def test_fingerprint_is_frozen():
    """The value is part of the format: a change makes every older checkpoint look damaged."""
    assert fingerprint({"a": {"b": jnp.arange(6, dtype=jnp.float32).reshape(2, 3)}, "c": jnp.bfloat16(1.5)}) == {
        "a/b": 1642309620, "c": 3666476220}


def array_file(step: Path, item: str = "acting") -> Path:
    """The largest data file of an item: it holds the arrays. Every restore reads the parameters to act with."""
    return max((step / item).rglob("d/*"), key=lambda path: path.stat().st_size)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def empty(step: Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


def alter_data_position(step: Path) -> None:
    path = step / "meta" / "data.json"
    path.write_text(path.read_text().replace('"index": 7', '"index": 8'))


DAMAGE = {
    "truncated data": lambda step: array_file(step).write_bytes(array_file(step).read_bytes()[:2000]),
    "emptied data": lambda step: array_file(step).write_bytes(b""),
    "missing data": lambda step: array_file(step).unlink(),
    "a flipped bit": lambda step: flip_a_bit(array_file(step)),
    "a flipped bit of what only training needs": lambda step: flip_a_bit(array_file(step, "state")),
    "missing manifest": lambda step: (step / "acting" / "manifest.ocdbt").unlink(),
    "missing metadata": lambda step: (step / "acting" / "_METADATA").unlink(),
    "garbage metadata": lambda step: (step / "acting" / "_METADATA").write_bytes(b"\xff{"),
    "no parameters": lambda step: shutil.rmtree(step / "acting"),
    "nothing else": lambda step: shutil.rmtree(step / "state"),
    "no meta": lambda step: shutil.rmtree(step / "meta"),
    "garbage meta": lambda step: (step / "meta" / "data.json").write_bytes(b"\x00\xff garbage"),
    "meta of another type": lambda step: (step / "meta" / "data.json").write_text("[1]"),
    "altered meta": alter_data_position,
    "empty directory": empty,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_newest_step_is_set_aside_and_the_one_before_used(directory: Path, kind: str, caplog):
    DAMAGE[kind](directory / "2")
    before = tree_of(directory / "2")
    with open_checkpoints(directory) as checkpoints, caplog.at_level(logging.WARNING, logger="absl"):
        step, state, meta = checkpoints.restore(abstract_of(make_state(0)))
        assert step == meta["step"] == 1
        assert_same(state, make_state(1))
        assert checkpoints.steps() == [1]
        assert tree_of(directory / "2.damaged") == before
        assert f"checkpoint {directory / '2'} is damaged: " in caplog.text
        checkpoints.save(2, make_state(2), META)  # the run reaches the same step again
    step, state, _ = open_checkpoints(directory).restore(abstract_of(make_state(0)))
    assert step == 2
    assert_same(state, make_state(2))


def test_a_step_damaged_twice_keeps_both_remains(directory: Path):
    with open_checkpoints(directory) as checkpoints:
        for _ in range(2):
            DAMAGE["a flipped bit"](directory / "2")
            checkpoints.restore(abstract_of(make_state(0)))
            checkpoints.save(2, make_state(2), META)
            checkpoints.wait()
    assert {path.name for path in directory.iterdir()} == {"1", "2", "2.damaged", "2.damaged-2"}


def test_if_every_step_is_damaged_nothing_is_touched_and_the_error_says_so(directory: Path):
    DAMAGE["missing data"](directory / "1")
    DAMAGE["garbage meta"](directory / "2")
    before = tree_of(directory)
    with pytest.raises(DamagedCheckpointError, match=r"(?s)every checkpoint .* move the directory away.*/2 is.*/1 is"):
        open_checkpoints(directory).restore(abstract_of(make_state(0)))
    assert tree_of(directory) == before


def test_another_model_is_an_error_that_names_paths_and_shapes_not_damage(directory: Path):
    before = tree_of(directory)
    state = make_state(0)
    params = {"vision": {"kernel": jnp.zeros((16, 32)), "bias": jnp.zeros(3)}, "language": state.params["language"]}
    with pytest.raises(ValueError, match="another model") as error:
        open_checkpoints(directory).restore(abstract_of(dataclasses.replace(state, params=params)))
    message = str(error.value)
    assert "params/vision/kernel: checkpoint float32[16, 24], this run float32[16, 32]" in message
    assert "only in this run: params/vision/bias float32[3]" in message
    assert "only in the checkpoint: params/vision/scale bfloat16[8]" in message
    assert "another workdir" in message
    assert tree_of(directory) == before


def test_another_dtype_is_an_error_too(directory: Path):
    half = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), make_state(0).params)
    with pytest.raises(ValueError, match=r"checkpoint float32.*this run bfloat16"):
        restore_parameters(directory, half)


def test_a_sharding_that_does_not_divide_is_not_taken_for_damage(directory: Path):
    abstract = jax.eval_shape(lambda: make_state(0)).opt_state[1]
    uneven = [sharding for _, sharding in meshes()][-1]
    with pytest.raises(ValueError, match="evenly divide"):
        restore_parameters(directory, abstract_of(abstract, uneven), subtree="opt_state/1")


def test_a_newer_format_is_refused_and_not_taken_for_damage(directory: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("agent_jax.checkpoints.meta.FORMAT_VERSION", FORMAT_VERSION + 1)
    with open_checkpoints(directory) as checkpoints:
        checkpoints.save(3, make_state(3), META)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="newer agent_jax"):
        open_checkpoints(directory).restore(abstract_of(make_state(0)))
    assert steps(directory) == [1, 2, 3]


def test_parameters_are_read_without_the_rest_and_without_changing_a_file(directory: Path):
    DAMAGE["missing data"](directory / "2")
    before = tree_of(directory)
    shapes = jax.eval_shape(lambda: make_state(0))
    params, meta = restore_parameters(directory, shapes.params)
    assert meta["step"] == 1
    assert_same(params, make_state(1).params)
    moments, _ = restore_parameters(directory, shapes.params, step=1, subtree="opt_state/0/1/0/mu")
    assert_same(moments, jax.tree.map(jnp.zeros_like, make_state(1).params))
    with pytest.raises(DamagedCheckpointError, match="2 is damaged: "):
        restore_parameters(directory, shapes.params, step=2)
    with pytest.raises(ValueError, match="only in this run: averaged/language/token_embedding"):
        restore_parameters(directory, shapes.params, subtree="averaged")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        restore_parameters(directory, shapes.params, step=9)
    assert tree_of(directory) == before


def test_read_meta_needs_no_arrays_and_skips_a_damaged_one(directory: Path):
    shutil.rmtree(directory / "2" / "state")
    assert read_meta(directory)["step"] == 2
    shutil.rmtree(directory / "2" / "acting")
    DAMAGE["garbage meta"](directory / "2")
    assert read_meta(directory)["step"] == 1
    with pytest.raises(DamagedCheckpointError, match="not JSON"):
        read_meta(directory, 2)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        read_meta(directory.parent)


def test_a_path_may_be_a_workdir_its_checkpoints_or_one_step(directory: Path, tmp_path: Path):
    for path, step in ((tmp_path, None), (directory, None), (directory / "1", 1)):
        found, found_step = locate(path)
        assert (str(found), found_step) == (str(directory), step)
    with pytest.raises(FileNotFoundError, match="expected a workdir"):
        locate(directory / "7")


def test_the_newest_and_the_best_steps_are_kept_across_restarts(tmp_path: Path):
    losses = {1: 0.9, 2: 0.1, 3: None, 4: 0.3, 5: float("nan"), 6: 0.2, 7: 0.8, 8: None}
    state = {"params": {"w": jnp.ones(3)}}
    for start in (1, 5):  # a new process would know the metrics from disk only
        with open_checkpoints(tmp_path, keep_latest=2, keep_best=2) as checkpoints:
            for step in range(start, start + 4):
                metrics = None if losses[step] is None else {"validation/loss": losses[step]}
                checkpoints.save(step, state, META, metrics)
    assert steps(tmp_path) == [2, 6, 7, 8]
    assert rank([read_meta(tmp_path, step) for step in steps(tmp_path)], "validation/loss") == [2, 6, 7]
    assert read_meta(tmp_path, 6)["metrics"] == {"validation/loss": 0.2}


def test_saving_over_another_run_is_refused(directory: Path):
    checkpoints = open_checkpoints(directory)
    for step in (1, 2):
        with pytest.raises(ValueError, match="already holds step 2"):
            checkpoints.save(step, make_state(step), META)


def test_the_step_just_saved_or_restored_is_not_saved_twice(directory: Path):
    with open_checkpoints(directory) as checkpoints:
        checkpoints.restore(abstract_of(make_state(0)))
        checkpoints.save(2, make_state(2), META)
        checkpoints.save(3, make_state(3), META)
        checkpoints.save(3, make_state(3), META)
    assert steps(directory) == [1, 2, 3]


def test_meta_must_not_hold_reserved_keys(tmp_path: Path):
    with pytest.raises(ValueError, match="reserved keys step"):
        open_checkpoints(tmp_path).save(1, make_state(1), {"step": 4})


def save_on_a_full_disk(checkpoints: Checkpoints, step: int, state: Any) -> None:
    """No file may grow past 64 kB until the save has ended in the background: it fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        checkpoints.save(step, state, META)
        while checkpoints._checkpointer.is_saving_in_progress():
            time.sleep(0.01)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_one_failed_save_is_survived_and_two_in_a_row_raise(tmp_path: Path, caplog):
    state = {"params": {"w": jax.random.normal(jax.random.key(0), (1 << 16,))}}
    checkpoints = open_checkpoints(tmp_path)
    save_on_a_full_disk(checkpoints, 1, state)
    checkpoints.save(2, state, META)
    checkpoints.wait()
    assert "Saving step 1 in" in caplog.text
    assert "too large" in caplog.text
    save_on_a_full_disk(checkpoints, 3, state)
    save_on_a_full_disk(checkpoints, 4, state)
    with pytest.raises(OSError, match=r"Saving step 4 in .* failed"):
        checkpoints.save(5, state, META)
    checkpoints.save(5, state, META)  # whoever catches it may go on
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "5"]


def test_a_failed_last_save_is_raised_on_closing_but_does_not_hide_another_error(tmp_path: Path):
    state = {"params": {"w": jax.random.normal(jax.random.key(0), (1 << 16,))}}
    with pytest.raises(OSError, match="Saving step 1"), open_checkpoints(tmp_path) as checkpoints:
        save_on_a_full_disk(checkpoints, 1, state)

    def run_that_fails() -> None:
        with open_checkpoints(tmp_path) as checkpoints:
            save_on_a_full_disk(checkpoints, 1, state)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run_that_fails()


KILLED = """
import os, signal, sys, time
import jax
import numpy as np
from agent_jax.checkpoints.checkpoint import Checkpoints

def run(out):
    make = jax.jit(lambda step: {"step": step, "w": jax.random.normal(jax.random.key(step), (1 << 22,))})
    checkpoints = Checkpoints(sys.argv[1], keep_latest=2, keep_best=0)
    step, state, meta = checkpoints.restore(jax.eval_shape(make, 0)) or (0, make(0), {"data_state": 0})
    assert meta["data_state"] == step == state["step"] and np.array_equal(state["w"], make(step)["w"])
    print("restored", step, file=out, flush=True)
    while True:
        step += 1
        checkpoints.save(step, make(step), {"data_state": step})
        print("saving", step, file=out, flush=True)

for saves, seconds in eval(sys.argv[2]):
    read, write = os.pipe()
    child = os.fork()  # before the backend starts: the imports are paid for once
    if child == 0:
        run(os.fdopen(write, "w"))
    os.close(write)
    lines = os.fdopen(read)
    seen = [lines.readline() for _ in range(1 + saves)]
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    seen += lines.readlines()
    left = any("tmp" in name for name in os.listdir(sys.argv[1]))
    print(*(line.strip() for line in seen), "unfinished" if left else "finished", sep=",", flush=True)
"""


def test_a_run_killed_in_a_save_leaves_the_old_or_the_new_step_exactly(tmp_path: Path):
    kills = [(2, 0.0), (1, 0.05), (1, 0.15), (2, 0.1), (1, 0.0)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", KILLED, str(tmp_path), repr(kills)]
    done = subprocess.run(command, env=environment, text=True, check=True, capture_output=True, timeout=300)
    before = 0
    moments = []
    for line in done.stdout.splitlines():
        restored, *saving, moment = line.split(",")
        # Each run starts at the step that the one before was killed in saving (it may not have had the time to say
        # that it had begun another), or at the one before that.
        assert int(restored.split()[1]) in (before - 1, before, before + 1)
        before = int(saving[-1].split()[1])
        moments.append(moment)
    assert len(moments) == len(kills)
    assert "unfinished" in moments
    assert not list(tmp_path.glob("*.damaged*"))


def test_retention_holds_no_more_of_a_step_than_it_needs():
    class Tokenizer:
        pass

    meta: dict[str, Any] = {"step": 1, "metrics": {"loss": 1.0}, "vocabulary": Tokenizer()}
    tokenizer = weakref.ref(meta["vocabulary"])
    retention = Retention([], keep_latest=1, keep_best=1, metric="loss")
    retention.note(meta)
    del meta
    gc.collect()
    assert tokenizer() is None
    assert retention.should_preserve([SimpleNamespace(step=1), SimpleNamespace(step=2)], context=None) == [True, True]
