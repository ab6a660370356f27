from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from data_stores import (
    babyai_domain,
    babyai_store,
    clip_domain,
    clip_store,
    game_domain,
    game_store,
    language_table_domain,
    language_table_store,
)

from agent_jax.batch import Batch
from agent_jax.data.pipeline.layout import row_size
from agent_jax.data.pipeline.loader import Loader, PackedRows, validation_batches
from agent_jax.data.pipeline.windows import Windows
from agent_jax.data.store.episode import RecordError

V, P = 5, 4
LENGTHS = (6, 1, 4, 5, 9, 2, 7, 3, 8, 4, 1, 5)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> tuple[Path, list[Windows]]:
    """Two domains: tiles, with short windows that share rows, and a table with full windows only."""
    directory = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGENT_JAX_CACHE", str(directory / "cache"))
        tiles = Windows(babyai_domain(), babyai_store(directory / "tiles", LENGTHS), "train")
        table = Windows(language_table_domain(), language_table_store(directory / "table"), "train")
    return directory, [tiles, table]


def packed(sources, *, seed: int = 0, weights: tuple[float, float] = (1.0, 1.0)) -> PackedRows:
    windows = list(sources[1])
    for number, weight in enumerate(weights):
        if weight != 1:
            changed = Windows.__new__(Windows)
            changed.__dict__.update(windows[number].__dict__)
            changed.domain = dataclasses.replace(windows[number].domain, weight=weight)
            windows[number] = changed
    size = row_size([domain.domain for domain in windows], V, frames_per_row=4)
    return PackedRows(windows, size, V, P, seed)


def take(loader: Loader, count: int) -> list[tuple[Batch, dict]]:
    taken = list(itertools.islice(loader, count))
    loader.close()
    return taken


def same(one: Batch, other: Batch) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in vars(one))


def joined(parts: list[Batch]) -> Batch:
    return Batch(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def test_an_epoch_holds_every_frame_of_every_episode_once(sources):
    rows = packed(sources)
    for epoch in (0, 1):
        count = [0, 0]
        for number in range(len(rows.plan(epoch))):
            row = rows.row(epoch, number)
            for domain in (0, 1):
                count[domain] += int(row["frame_weight_BF"][row["domain_BF"] == domain].sum())
        assert count == [sum(LENGTHS), 6 + 8 + 3]


def test_epochs_differ_in_order_and_seeds(sources):
    rows = packed(sources)
    first = {int(rows.row(0, number)["seed_B"]) for number in range(len(rows.plan(0)))}
    second = {int(rows.row(1, number)["seed_B"]) for number in range(len(rows.plan(1)))}
    assert not first & second
    assert rows.plan(0).windows.tolist() != rows.plan(1).windows.tolist()
    assert packed(sources, seed=1).plan(0).windows.tolist() != rows.plan(0).windows.tolist()


def test_rows_are_filled_with_short_windows(sources):
    assert packed(sources).fill()["windows_per_row"] > 1.15


def test_two_processes_share_exactly_the_batches_of_one(sources):
    whole = take(Loader(packed(sources), 4), 12)
    parts = [take(Loader(packed(sources), 4, process_index=index, process_count=2), 12) for index in (0, 1)]
    assert whole[-1][1]["epoch"] == 2  # more than two epochs were seen
    for (batch, state), (one, state_one), (two, state_two) in zip(whole, *parts, strict=True):
        assert one.rows == two.rows == 2
        assert same(joined([one, two]), batch)
        assert state == state_one == state_two


def test_every_state_continues_with_the_next_batch_on_any_number_of_processes(sources):
    whole = take(Loader(packed(sources), 4), 12)
    for number in range(0, 10, 3):
        state = json.loads(json.dumps(whole[number][1]))
        assert state["rows"] == 4 * (number + 1)
        (batch, after), *_ = take(Loader(packed(sources), 4, state=state), 1)
        assert same(batch, whole[number + 1][0])
        assert after == whole[number + 1][1]
        halves = [take(Loader(packed(sources), 4, process_index=i, process_count=2, state=state), 2) for i in (0, 1)]
        assert same(joined([half[1][0] for half in halves]), whole[number + 2][0])


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> list[Windows]:
    """A robot, a game whose actions differ in length, and tiles, all with random windows."""
    directory = tmp_path_factory.mktemp("three")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGENT_JAX_CACHE", str(directory / "cache"))
        stores = [language_table_store(directory / "table", (12, 9)), game_store(directory / "game"),
                  babyai_store(directory / "tiles", LENGTHS)]
        domains = [language_table_domain(index=0, sampling="random", weight=2.5),
                   game_domain(index=1, sampling="random"),
                   babyai_domain(index=2, sampling="random", weight=0.7)]
        return [Windows(domain, store, "train", seed=3) for domain, store in zip(domains, stores, strict=True)]


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> list[Windows]:
    """The same three kinds with more windows, for statistics of packing."""
    directory, rng = tmp_path_factory.mktemp("many"), np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGENT_JAX_CACHE", str(directory / "cache"))
        stores = [babyai_store(directory / "tiles", rng.integers(2, 12, 90).tolist()),
                  language_table_store(directory / "table", rng.integers(15, 60, 16).tolist()),
                  game_store(directory / "game", rng.integers(40, 120, 8).tolist())]
        domains = [babyai_domain(), language_table_domain(), game_domain()]
        return [Windows(domain, store, "train") for domain, store in zip(domains, stores, strict=True)]


def mixed(three: list[Windows]) -> PackedRows:
    size = row_size([windows.domain for windows in three], V, frames_per_row=13)
    return PackedRows(three, size, V, P, seed=3, fit=True)


def test_a_mixture_with_random_windows_continues_exactly_on_any_number_of_processes(three):
    whole = take(Loader(mixed(three), 4), 14)
    assert whole[-1][1]["epoch"] >= 2
    for number in (0, 3, 8):
        state = json.loads(json.dumps(whole[number][1]))
        for processes in (1, 2, 4):
            parts = [take(Loader(mixed(three), 4, process_index=index, process_count=processes, state=state), 3)
                     for index in range(processes)]
            for ahead in range(3):
                expected, after = whole[number + 1 + ahead]
                assert same(joined([part[ahead][0] for part in parts]), expected)
                assert all(part[ahead][1] == after for part in parts)


def test_random_windows_are_packed_by_their_size_in_each_epoch(three):
    rows = mixed(three)
    for epoch in (0, 1, 2, 3):
        used = sum(np.count_nonzero(rows.row(epoch, number)["segment_BS"]) for number in range(len(rows.plan(epoch))))
        assert used == round(rows.fill(epoch)["slots"] * rows.size.slots * len(rows.plan(epoch)))


@pytest.mark.parametrize(("visual_tokens", "frames"), [(197, 9), (197, 17), (50, 9), (50, 13)])
def test_a_mixture_of_tiles_a_robot_and_a_game_fills_nine_tenths_of_its_slots(visual_tokens, frames, many):
    size = row_size([windows.domain for windows in many], visual_tokens, frames)
    fitted, longest = (PackedRows(many, size, visual_tokens, 196, 0, fit=fit) for fit in (True, False))
    assert fitted.fill()["slots"] > 0.9
    assert fitted.fill()["frames"] > 0.92
    assert fitted.fill()["slots"] > longest.fill()["slots"] + 0.05


def test_a_clip_with_a_label_has_a_row_of_its_own(sources, tmp_path, monkeypatch):
    monkeypatch.setenv("AGENT_JAX_CACHE", str(tmp_path / "cache"))
    clips = Windows(clip_domain("label", index=1), clip_store(tmp_path / "clips"), "train")
    tiles = sources[1][0]
    rows = PackedRows([tiles, clips], row_size([tiles.domain, clips.domain], V, frames_per_row=12), V, P, 0, fit=True)
    found = []
    for number in range(len(rows.plan(0))):
        row = rows.row(0, number)
        labelled = bool((row["domain_BF"][row["clip_BF"] >= 0] == 1).any())
        assert (row["label_B"] >= 0) == labelled
        assert not labelled or row["segment_BS"].max() == 1
        found += [int(row["label_B"])] * labelled
    assert sorted(found) == sorted(clips.labels.tolist())


def test_the_batch_size_may_change_between_a_state_and_its_continuation(sources):
    small = take(Loader(packed(sources), 2), 8)
    (large, state), *_ = take(Loader(packed(sources), 4, state=small[3][1]), 1)
    assert same(large, joined([small[4][0], small[5][0]]))
    assert state == small[5][1]


@pytest.mark.parametrize("prefetch", [0, 1, 7])
def test_prefetching_changes_nothing(sources, prefetch):
    expected = take(Loader(packed(sources), 3), 5)
    found = take(Loader(packed(sources), 3, prefetch=prefetch), 5)
    for (batch, state), (other, other_state) in zip(expected, found, strict=True):
        assert same(batch, other)
        assert state == other_state


def test_worker_processes_change_nothing(sources):
    expected = take(Loader(packed(sources), 3), 6)
    found = take(Loader(packed(sources), 3, workers=1, prefetch=2), 6)
    for (batch, state), (other, other_state) in zip(expected, found, strict=True):
        assert same(batch, other)
        assert state == other_state


def test_weights_set_the_share_of_a_domain_in_training_and_not_in_validation(sources):
    rows = packed(sources, weights=(0.5, 3.0))
    tiles, table = (len(windows) for windows in sources[1])
    counts = np.zeros(2)
    for epoch in range(4):
        for number in range(len(rows.plan(epoch))):
            row = rows.row(epoch, number)
            for segment in range(1, row["segment_BS"].max() + 1):
                counts[row["domain_BS"][row["segment_BS"] == segment][0]] += 1
    assert counts.tolist() == [tiles * 2, table * 12]
    plain = list(validation_batches(packed(sources), 4))
    weighted = list(validation_batches(rows, 4))
    assert all(same(*pair) for pair in zip(plain, weighted, strict=True))


def test_validation_is_one_pass_in_a_fixed_order_padded_to_equal_batches(sources):
    rows = packed(sources)
    total = len(rows.plan(0))
    assert total % 4  # so that there is something to pad
    batches = list(validation_batches(rows, 4))
    assert len(batches) == -(-total // 4)
    whole = joined(batches)
    assert whole.frame_weight_BF.sum() == sum(LENGTHS) + 6 + 8 + 3
    padding = slice(total, None)
    for name in ("frame_weight_BF", "language_weight_BT", "action_weight_BT", "segment_BS"):
        assert not getattr(whole, name)[padding].any()
    assert all(same(*pair) for pair in zip(batches, validation_batches(packed(sources), 4), strict=True))
    assert len(list(validation_batches(rows, 4, 2))) == 2
    halves = [list(validation_batches(rows, 4, process_index=index, process_count=2)) for index in (0, 1)]
    assert all(same(joined([one, two]), batch) for one, two, batch in zip(*halves, batches, strict=True))


def test_a_batch_that_does_not_divide_among_processes_is_refused(sources):
    with pytest.raises(ValueError, match="batch_size=5 rows must divide among 2 processes"):
        Loader(packed(sources), 5, process_count=2)
    with pytest.raises(ValueError, match="batch_size=5 rows must divide among 2 processes"):
        next(validation_batches(packed(sources), 5, process_count=2))


def test_a_state_of_other_data_is_refused(sources):
    rows = packed(sources)
    state = {"rows": 4, "epoch": 0, "row": 4, "windows": [1, 2]}
    with pytest.raises(ValueError, match=r"data state: found \[1, 2\] windows"):
        Loader(rows, 4, state=state)
    with pytest.raises(ValueError, match="missing epoch, row, windows"):
        Loader(rows, 4, state={"rows": 4})


def test_data_without_windows_are_refused(sources):
    size = row_size([babyai_domain()], V, frames_per_row=4)
    with pytest.raises(ValueError, match="no windows in any domain"):
        PackedRows([], size, V, P, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_record_is_named_by_file_and_number_by_threads_and_by_workers(tmp_path, workers):
    store = babyai_store(tmp_path / "tiles", LENGTHS)
    windows = Windows(babyai_domain(), store, "train")
    shard, content = store.files("train")[0], store.split("train").serialized(4)
    whole = shard.read_bytes()
    at = whole.index(content) + len(content) // 2
    shard.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    rows = PackedRows([windows], row_size([windows.domain], V, frames_per_row=4), V, P, 0)
    loader = Loader(rows, 3, workers=workers, prefetch=2)
    with pytest.raises(RecordError, match=rf"{shard}, split 'train', record 4: cannot be read .*Copy the file"):
        take(loader, 20)
    loader.close()
