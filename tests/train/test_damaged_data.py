"""A record found damaged in the middle of a run: one message, the last step whole, and the run can go on."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_stores import babyai_store
from small_runs import open_run, small_config, trained

from agent_jax.checkpoints import checkpoint
from agent_jax.data.store.episode import RecordError
from agent_jax.data.store.store import open_store
from agent_jax.train.loop import train
from agent_jax.train.run import Run


def late_record(run: Run) -> tuple[int, int]:
    """A record that the first batch does not read but an early one does, and the number of batches before that one."""
    windows, size = run.data.train.windows[0], run.config.train.batch_size
    samples, plan = run.data.train._epoch(0)
    first: dict[int, int] = {}
    for row in range(len(plan)):
        for sample in plan.row(row):
            first.setdefault(int(windows.record[samples.window_N[sample]]), row // size)
    record = min((record for record in first if first[record]), key=lambda record: first[record])
    assert first[record] < run.config.train.steps
    return record, first[record]


@pytest.mark.slow
def test_a_damaged_record_ends_a_run_with_its_name_and_the_last_step_saved(tmp_path: Path):
    store = Path(babyai_store(tmp_path / "store", lengths=(6, 1, 4, 5, 9, 2, 7, 8, 3) * 3).directory)
    config = small_config(store, **{"train.steps": 6, "checkpoint.every": 100, "train.validate_every": 0})
    run = open_run(config, tmp_path / "run")
    record, batches = late_record(run)
    content = open_store(store).split("train").serialized(record)
    shard = store / "tiles-train.array_record-00000-of-00001"
    whole = shard.read_bytes()
    at = whole.index(content) + len(content) // 2
    shard.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(RecordError, match=rf"{shard}, split 'train', record {record}: cannot be read .*Copy the file.* "
                                          rf"Step {batches} is saved"):
        train(run, *run.open_streams())
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [batches]
    shard.write_bytes(whole)
    assert int(trained(config, tmp_path / "run").state.step) == 6
