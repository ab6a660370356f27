"""A log on a disk that is full for a while: whole records, some of them lost, and a run that goes on."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_jax.train.appended_file import AppendedFile
from agent_jax.train.metrics import LOSSES, MetricsLog, Record


@contextlib.contextmanager
def room(size: int) -> Iterator[None]:
    """No file may grow past this size: a write that reaches it is cut short, the next one fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_record_without_room_is_lost_whole_and_the_next_one_follows_the_last(tmp_path: Path, caplog):
    file = AppendedFile(tmp_path / "log")
    assert file.append(b"first\n")
    with room(10), caplog.at_level(logging.WARNING, logger="absl"):
        assert not file.append(b"second\n")
        assert not file.append(b"third\n")
        assert (tmp_path / "log").read_bytes() == b"first\n"
    assert file.append(b"fourth\n")
    file.close()
    assert (tmp_path / "log").read_bytes() == b"first\nfourth\n"
    lost, again = (record.getMessage() for record in caplog.records if record.name == "absl")
    assert f"{tmp_path / 'log'} cannot be written to (File too large)" in lost
    assert "2 record(s) were lost" in again


def record(step: int) -> Record:
    return Record(step, "train", time.time(), 1.0, dict.fromkeys(LOSSES, 1.0), {})


def test_a_full_disk_costs_lines_and_events_and_neither_tears_one_nor_waits(tmp_path: Path):
    from tensorboardX.proto import event_pb2

    events_of: Any = event_pb2  # its classes are made at import
    log = MetricsLog(tmp_path, 0)
    for step in range(1, 101):
        full = 20 <= step < 80  # more than tensorboardX's queue of ten held
        with room(max(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) if full else 1 << 30):
            log.write(record(step))
    log.close()
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    kept = [*range(1, 20), *range(80, 101)]
    assert set(kept) <= set(steps)  # the shorter of the two files has room for some lines more
    assert steps == sorted(set(steps))
    (path,) = (tmp_path / "tensorboard").iterdir()
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(events_of.Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    assert events[0].file_version == "brain.Event:2"
    seen = [event.step for event in events if event.summary.value]
    assert set(kept) <= set(seen)
    assert len(kept) < len(steps) + len(seen) - len(kept) < 2 * 100


def test_a_log_that_cannot_be_rewritten_is_left_as_it_is(tmp_path: Path):
    text = "".join(record(step).to_json() + "\n" for step in range(1, 5))
    (tmp_path / "metrics.jsonl").write_text(text)
    with room(100), pytest.raises(OSError, match=r"metrics.jsonl cannot be rewritten .* File too large; make room"):
        MetricsLog(tmp_path, 2)
    assert (tmp_path / "metrics.jsonl").read_text() == text
    assert os.listdir(tmp_path) == ["metrics.jsonl"]
