from __future__ import annotations

import importlib.util
import itertools
import sys

import pytest
from data_stores import language_table_store

from agent_jax.data.prepare.sources.rlds.tfrecord import read_record, record_offsets


@pytest.fixture(scope="module")
def benchmark(root):
    spec = importlib.util.spec_from_file_location("input_pipeline", root / "benchmarks" / "input_pipeline.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["input_pipeline"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["input_pipeline"]


@pytest.fixture
def table(tmp_path):
    return language_table_store(tmp_path / "set", lengths=(8, 8, 12, 40))


def test_ours_and_pytorch_deliver_the_same_windows(benchmark, table):
    assert list(itertools.islice(benchmark.ours(table.directory, 0), 2)) == [64, 64]
    windows = benchmark.TorchWindows(table.directory)
    assert len(windows) == 17
    images, actions = windows[3]
    assert (tuple(images.shape), tuple(actions.shape)) == ((4, 224, 224, 3), (4, 2))
    assert next(benchmark.pytorch(table.directory, 0)) == 64


def test_the_copy_for_tf_data_holds_the_very_records(benchmark, table, tmp_path):
    path = benchmark.tfrecord_copy(table.directory, tmp_path)
    offsets, wrong = record_offsets(path)
    assert wrong == ""
    split = table.split("train")
    assert [read_record(path, offset) for offset in offsets] == [split.serialized(n) for n in range(4)]


def test_a_missing_library_is_named_and_the_others_are_measured(benchmark, table):
    def missing():
        import no_such_library  # noqa: F401  # pyright: ignore[reportMissingImports]

    ways = {"none": missing, "ours": lambda: benchmark.ours(table.directory, 0)}
    found = benchmark.measure(ways, rounds=1, seconds=0.1)
    assert found["none"] == {"missing": "no_such_library"}
    assert found["ours"]["frames_per_s"] > 0
    assert "no_such_library is not installed" in benchmark._said("none", found["none"])


def test_the_copy_of_the_memory_test_holds_all_records_several_times(benchmark, table, tmp_path):
    large = benchmark.larger_copy(table.directory, tmp_path, 3)
    assert sum(benchmark.open_store(large).splits.values()) == 12


def test_a_chip_needs_what_its_arithmetic_allows(benchmark):
    found = benchmark.needs(1000.0)["H100"]
    assert found["needed"] == pytest.approx(989e12 * 0.4 / (3 * 41e9))
    assert found["predicted"] == 14_000
