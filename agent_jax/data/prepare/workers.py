"""Writes shards in one process or several, each with a report of its counts next to it; shows the progress."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Literal

from agent_jax.data.bad_data import BadDataError
from agent_jax.data.paths import Folder
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.shard import Counts, RecordMaker, buffered, stored_features
from agent_jax.data.prepare.sources import open_source
from agent_jax.data.prepare.sources.source import Recording, Source
from agent_jax.data.store.writer import ShardWriter
from agent_jax.json_files import write_json
from agent_jax.runtime.progress_bar import ProgressBar
from agent_jax.runtime.worker_process import WorkerDiedError, run_tasks


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """What goes into one shard, in plain values that can be sent to a process."""

    kind: str
    source: str  # path of the data
    config: PrepareConfig
    path: str  # of the shard
    recordings: Sequence[Recording]
    on_error: Literal["stop", "skip"]
    state: str = ""  # hash of the source files; a shard that was written in another state is written again

    @property
    def report(self) -> Path:
        """The file next to the shard that holds its state and counts."""
        path = Path(self.path)
        return path.with_name(f".{path.name}.report.json")

    def finished(self) -> Counts | None:
        """The counts of an earlier run, if it finished this shard in the same state."""
        if not Path(self.path).is_file():
            return None
        report = json.loads(self.report.read_text()) if self.report.is_file() else {}
        if report.get("state") != self.state:
            return None
        counts = Counts(**report["counts"])
        return None if counts.skipped and self.on_error == "stop" else counts


def write_shard(plan: ShardPlan, source: Source, progress: Callable[[int, int], None]) -> Counts:
    """Write one shard and its report; calls `progress` with the numbers of new recordings and steps.

    Raises:
        BadDataError: a recording cannot be read, and `plan.on_error` is "stop".
    """
    path = Path(plan.path)
    maker, counts = RecordMaker(source, plan.config), Counts()
    given = Path(plan.source)
    folder = Folder(given if given.is_dir() else given.parent, plan.config.allow_root)
    path.unlink(missing_ok=True)  # so that a shard of another state never has the new report
    with ShardWriter(path, stored_features(source.schema, plan.config)) as writer:
        for recording in plan.recordings:
            own = Counts()
            records = maker.records(recording, own)
            try:
                folder.check_links((file for file in source.files(recording) if file != given), recording.where)
                for record in buffered(records, path.parent) if plan.on_error == "skip" else records:
                    writer.write_serialized(record)
            except BadDataError as error:
                if plan.on_error == "stop":
                    raise
                own = Counts(skipped=[{"recording": recording.name, "where": recording.where, "why": str(error)}])
            counts.add(own)
            progress(1, own.steps)
        # Before the shard appears, so that every shard has its report.
        write_json(plan.report, {"state": plan.state, "counts": dataclasses.asdict(counts)})
    return counts


def run_shards(plans: Sequence[ShardPlan], source: Source, processes: int) -> Generator[tuple[int, Counts]]:
    """Write all missing shards; yields the number and the counts of each, in the order they are finished.

    Raises:
        BadDataError: as `write_shard`; the other processes stop at their next recording.
        RuntimeError: a process was killed, for example for lack of memory.
    """
    steps = 0

    def add(recordings: int, new: int) -> None:
        nonlocal steps
        steps += new
        progress.add(recordings, f"{steps / progress.seconds:,.0f} steps/s")

    total = sum(len(plan.recordings) for plan in plans)
    with ProgressBar("prepare", total, "recordings", file=sys.stderr) as progress:
        missing = []
        for number, plan in enumerate(plans):
            counts = plan.finished()
            if counts is None:
                missing.append((number, plan))
            else:
                progress.skip(len(plan.recordings))
                yield number, counts
        if min(processes, len(missing)) <= 1:
            for number, plan in missing:
                yield number, write_shard(plan, source, add)
        else:
            yield from _in_processes(missing, processes, add)


def _in_processes(missing: Sequence[tuple[int, ShardPlan]], processes: int,
                  add: Callable[[int, int], None]) -> Iterator[tuple[int, Counts]]:
    results = run_tasks(_work, [plan for _, plan in missing], processes, lambda counts: add(*counts),
                        kill=False)
    try:
        for task, result in results:
            if isinstance(result, BadDataError):
                raise result
            yield missing[task][0], result
    except WorkerDiedError as error:
        raise RuntimeError(f"a process that prepared data ended early ({error.reason}), perhaps killed for lack of "
                           "memory; the same command continues where it ended, and needs less memory with fewer "
                           "--processes") from error
    finally:
        results.close()


_opened: dict[str, Source] = {}  # by path: all shards of a worker process are of one source


def _work(plan: ShardPlan, report: Callable[[tuple[int, int]], None]) -> Counts | BadDataError:
    """Write a shard in a worker process; an error of the data is returned, to be raised by the caller."""
    if plan.source not in _opened:
        _opened[plan.source] = open_source(plan.kind, Path(plan.source), plan.config)
    try:
        return write_shard(plan, _opened[plan.source], lambda recordings, steps: report((recordings, steps)))
    except BadDataError as error:
        return error
