"""The mesh, the rule table and the batch on the mesh."""

import dataclasses
import math
import re

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from agent_jax.batch import Batch, RowSize
from agent_jax.config import Config, MeshConfig, ModelConfig, OptimizerConfig, TrainConfig, VisionConfig
from agent_jax.models.agent import init_params
from agent_jax.runtime import sharding
from agent_jax.runtime.sharding import RULES, make_mesh, path_name, rule_for, tree_shardings
from agent_jax.train import sharding_report
from agent_jax.train.optimizer import make_optimizer
from agent_jax.train.state import TrainState

LARGE = 65_536  # elements


def full_model():
    """The paper's model with every optional array: temporal attention and trainable positions."""
    vision = VisionConfig(positions="clip", temporal_attention=True)
    config = ModelConfig(vision=vision)
    return dataclasses.replace(config, language=dataclasses.replace(config.language, vocabulary_size=51_578))


@pytest.fixture(scope="module")
def full_params():
    return jax.eval_shape(lambda: init_params(full_model(), jax.random.key(0)))


def paths(tree):
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_minus_one_takes_the_devices_that_are_left():
    shape = lambda *given: tuple(make_mesh(*given).shape.values())  # noqa: E731
    assert make_mesh(MeshConfig()).axis_names == ("replica", "data", "fsdp", "tensor")
    assert shape(MeshConfig(data=-1, fsdp=2, tensor=2)) == (1, 2, 2, 2)
    assert shape(MeshConfig(data=2, replica=-1)) == (4, 2, 1, 1)
    assert shape(MeshConfig(), jax.devices()[:3]) == (1, 3, 1, 1)


@dataclasses.dataclass(frozen=True)
class Chip:
    """Of several slices, which a CPU does not have."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "cpu"
    device_kind: str = "chip"


TWO_SLICES = [Chip(i, slice_index=i % 2) for i in range(8)]  # not in order


@pytest.mark.parametrize(("config", "between"), [
    (MeshConfig(replica=2, data=-1, tensor=2), "replica 2"),
    (MeshConfig(data=-1, tensor=4), "data 2"),
    (MeshConfig(replica=4, data=2), "replica 2"),  # two replicas a slice
    (MeshConfig(data=1, fsdp=8), "fsdp 2"),
])
def test_over_several_slices_the_outermost_axes_lie_between_them(config, between):
    mesh = make_mesh(config, TWO_SLICES)
    assert f"2 slices ({between} between them)" in sharding_report.mesh_lines(mesh, TrainConfig(batch_size=64))
    assert sorted(device.id for device in mesh.devices.flat) == list(range(8))
    halves = mesh.devices.reshape(2, 4)
    assert [{chip.slice_index for chip in half} for half in halves] == [{0}, {1}]


def test_tensor_parallelism_over_the_network_between_slices_is_refused():
    with pytest.raises(ValueError, match=r"2 slices, and config.mesh.tensor=8 .* set config.mesh.replica"):
        make_mesh(MeshConfig(data=1, tensor=8), TWO_SLICES)


@dataclasses.dataclass(frozen=True)
class TorusChip(Chip):
    """Of a slice in which each chip is wired to its neighbours."""

    coords: tuple[int, int, int] = (0, 0, 0)
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v6 lite"


def test_axes_that_do_not_fit_the_torus_of_a_slice_are_refused_by_name():
    chips = [TorusChip(i, 0, coords=(i % 4, i // 4, 0)) for i in range(16)]
    assert make_mesh(MeshConfig(data=4, fsdp=4), chips).devices.shape == (1, 4, 4, 1)
    with pytest.raises(ValueError, match=r"config.mesh.fsdp=2, .* do not fit the 16 TPU v6 lite as they are wired"):
        make_mesh(MeshConfig(data=-1, fsdp=2), chips)


@pytest.mark.parametrize(("config", "message"), [
    (MeshConfig(data=4, fsdp=1, tensor=1), r"config.mesh.data=4, .*ask for 4 devices, but there are 8 \(cpu\)"),
    (MeshConfig(data=-1, fsdp=3, tensor=1), r"config.mesh.fsdp=3, .*a multiple of 3 devices, but there are 8"),
    (MeshConfig(data=-1, fsdp=16, tensor=1), r"a multiple of 16 devices, but there are 8"),
    (MeshConfig(data=-1, fsdp=-1, tensor=1), r"one of them may be -1"),
    (MeshConfig(data=8, fsdp=0, tensor=1), r"config.mesh.fsdp=0.*at least 1"),
    (MeshConfig(data=4, replica=3), r"config.mesh.replica=3, config.mesh.data=4.*ask for 12 devices, but there are 8"),
])
def test_a_mesh_that_does_not_fit_the_devices_is_refused_by_name(config, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(config)


def test_everything_that_does_not_divide_is_named_in_one_message():
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=8))
    config = Config(model=full_model(), train=TrainConfig(batch_size=10, accumulation=4))
    with pytest.raises(ValueError, match="does not divide over the mesh") as error:
        sharding.check_divides(config, mesh)
    text = str(error.value)
    assert "config.train.batch_size=10 does not divide by 4" in text
    assert "config.model.vision.heads=12 does not divide by 8 (mesh tensor 8)" in text
    assert "config.model.language.heads=12" in text
    assert "mae.heads" not in text  # 16 heads
    assert "mlp_width" not in text
    sharding.check_divides(dataclasses.replace(config, train=TrainConfig(batch_size=16, accumulation=4)),
                           make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))


@pytest.mark.parametrize(("devices", "count", "rows"), [(1, 8, 6), (2, 4, 6), (4, 2, 6), (8, 1, 6)])
def test_rows_per_device_keep_the_global_batch_on_any_number_of_devices(devices, count, rows):
    train = TrainConfig(batch_size=48, rows_per_device=7)  # 6 is the greatest divisor up to it
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    assert sharding.microbatches_of_step(train, mesh) == count
    sharding.check_divides(Config(model=full_model(), train=train), mesh)
    assert (f"batch: 48 rows = {devices} shard(s) x {rows} rows (at most 7 a device) x {count} microbatch(es)"
            in sharding_report.mesh_lines(mesh, train))


def test_without_a_limit_the_microbatches_are_those_of_the_config():
    mesh = make_mesh(MeshConfig(replica=2, tensor=2))
    assert sharding.microbatches_of_step(TrainConfig(batch_size=48, accumulation=3), mesh) == 3
    assert sharding_report.mesh_lines(mesh, TrainConfig(batch_size=48, accumulation=3)).splitlines() == [
        "mesh: {'replica': 2, 'data': 2, 'fsdp': 1, 'tensor': 2} over 8 cpu device(s), 1 process(es)",
        "batch: 48 rows = 4 shard(s) x 4 rows x 3 microbatch(es)"]


def test_a_vocabulary_table_that_does_not_divide_is_refused():
    language = dataclasses.replace(full_model().language, vocabulary_size=261, vocabulary_multiple=1)
    config = Config(model=dataclasses.replace(full_model(), language=language))
    with pytest.raises(ValueError, match=r"vocabulary_multiple=261 does not divide by 2 \(table rows; mesh tensor 2\)"):
        sharding.check_divides(config, make_mesh(MeshConfig(data=4, fsdp=1, tensor=2)))


def test_every_large_array_of_the_full_model_matches_a_row_above_the_default(full_params):
    large = {path: leaf.shape for path, leaf in paths(full_params).items() if math.prod(leaf.shape) > LARGE}
    assert len(large) > 15
    unmatched = {path: shape for path, shape in large.items() if rule_for(path) == len(RULES) - 1}
    assert not unmatched


def test_every_row_of_the_table_is_the_rule_of_some_array(full_params):
    assert {rule_for(path) for path in paths(full_params)} == set(range(len(RULES)))


def test_every_rule_has_as_many_dimensions_as_its_arrays(full_params):
    for path, leaf in paths(full_params).items():
        spec = RULES[rule_for(path)][1]
        assert not spec or len(spec) in (len(leaf.shape), len(leaf.shape) - 1), path
        assert "blocks/" not in path or not spec or spec[0] is None, path  # the axis of layers is never split


def test_both_adam_moments_and_the_average_follow_their_parameter(full_params):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    opt_state = jax.eval_shape(make_optimizer(OptimizerConfig(), 10, full_params).init, full_params)
    step = jax.ShapeDtypeStruct((), np.int32)
    specs = paths(tree_shardings(mesh, TrainState(step, full_params, opt_state, full_params)))
    for path in paths(full_params):
        held = [name for name in specs if re.search(rf"(opt_state/.*/(mu|nu)|^averaged)/{path}$", name)]
        assert len(held) == 3
        for name in held:
            assert specs[name] == specs[f"params/{path}"]


def test_an_array_that_does_not_divide_is_refused_by_path():
    tree = {"language": {"token_embedding": jax.ShapeDtypeStruct((7, 4), np.float32)}}
    with pytest.raises(ValueError, match=r"token_embedding of shape \(7, 4\): 7 does not divide by mesh tensor 2"):
        tree_shardings(make_mesh(MeshConfig(data=4, fsdp=1, tensor=2)), tree)


def test_an_array_with_too_few_dimensions_for_its_rule_is_refused_by_path():
    tree = {"connector": {"kernel": jax.ShapeDtypeStruct((8,), np.float32)}}
    with pytest.raises(ValueError, match=r"connector/kernel of shape \(8,\): its sharding rule"):
        tree_shardings(make_mesh(MeshConfig()), tree)


def test_each_device_holds_an_eighth_of_the_full_models_kernels(full_params):
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    parts = {part.part: part for part in sharding_report.bytes_by_part(full_params, tree_shardings(mesh, full_params))}
    assert sum(part.elements for part in parts.values()) == sum(leaf.size for leaf in jax.tree.leaves(full_params))
    assert parts["mae/blocks"].bytes == 4 * parts["mae/blocks"].elements
    assert parts["mae/blocks"].bytes_per_device == pytest.approx(parts["mae/blocks"].bytes / 8, rel=0.01)
    table = parts["language/token_embedding"]
    assert table.bytes_per_device == table.bytes // 2  # by vocabulary only


def test_the_printed_table_ends_in_the_sums_of_its_lines():
    tree = {"a": {"x": jax.ShapeDtypeStruct((8, 2), np.float32)}, "b": jax.ShapeDtypeStruct((3,), np.int32)}
    mesh = make_mesh(MeshConfig())
    shardings = {"a": {"x": sharding.batch_sharding(mesh)}, "b": sharding.replicated(mesh)}
    parts = sharding_report.bytes_by_part(tree, shardings, depth=1)
    assert parts == [sharding_report.PartBytes("a", 16, 64, 8), sharding_report.PartBytes("b", 3, 12, 12)]
    assert sharding_report.bytes_table(parts).splitlines()[-1].split() == ["total", "19", "0.0", "0.0"]


def test_rows_are_split_over_replica_data_and_fsdp_and_keep_their_order():
    batch = Batch.fake(RowSize(1, 8, 8, 2), 8, visual_tokens=5, vocabulary_size=9)
    placed = sharding.shard_batch(batch, make_mesh(MeshConfig(replica=2, data=1, fsdp=2, tensor=2)))
    for host, device in zip(jax.tree.leaves(batch), jax.tree.leaves(placed), strict=True):
        np.testing.assert_array_equal(host, device)
        assert device.sharding.spec == PartitionSpec(("replica", "data", "fsdp"))
        assert device.addressable_shards[0].data.shape[0] == 2


def test_a_batch_that_does_not_divide_over_the_mesh_is_refused():
    batch = Batch.fake(RowSize(1, 8, 8, 2), 6, visual_tokens=5, vocabulary_size=9)
    with pytest.raises(ValueError, match=r"6 rows does not divide over mesh data 2 x fsdp 2 = 4"):
        sharding.shard_batch(batch, make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))


def test_rows_are_pinned_only_where_a_mesh_is_set():
    x = jax.numpy.ones((8, 2))
    assert sharding.constrain_rows(x) is x
    mesh = make_mesh(MeshConfig(replica=2, data=2, fsdp=2))
    with jax.set_mesh(mesh):
        assert jax.jit(sharding.constrain_rows)(x).sharding.spec == PartitionSpec(("replica", "data", "fsdp"))
