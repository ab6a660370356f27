"""Converts foreign data to the canonical store: shard by shard, in several processes, resuming interrupted runs.

    recordings --by split, in fixed numbers--> shards --processes--> .DIR.partial/ --finish_store--> DIR

The content of a shard depends on the data and the config alone. Next to each finished shard is its report: the state of
its source files, and what was counted and skipped. A resumed run keeps the shards whose files have not changed since,
and writes the others again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from agent_jax.actions import ActionSpec, StateSpec
from agent_jax.data.bad_data import BadDataError
from agent_jax.data.paths import check_on_disk
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.shard import Counts, spec_bounds, stored_features
from agent_jax.data.prepare.sources import open_source
from agent_jax.data.prepare.sources.choices import declared_spec
from agent_jax.data.prepare.sources.source import Recording, Source
from agent_jax.data.prepare.workers import ShardPlan, run_shards
from agent_jax.data.store.store import Store
from agent_jax.data.store.writer import begin_store, finish_store, is_split_name, keep_shards, shard_path
from agent_jax.help_pages import help_page
from agent_jax.runtime.directory_lock import DirectoryLock

FORMAT = 2  # of records: increase it if the same data and config produce different ones
_SHARD_BYTES = 64_000_000  # of source files: the most work that a kill loses, and what one process takes at a time
_MAX_SHARD_RECORDINGS = 500
_EARLY_STEPS = 10_000  # after so many steps, too many values beyond the bounds stop the run before its end
_NOT_OF_RECORDS = ("out_of_bounds", "allow_root")  # config fields that decide what is refused, not what is stored
_OUTSIDE_QUANTILES = 0.05  # share beyond bounds that are the 1% and 99% quantiles of all data: 2%, with a margin
_MAX_SKIPPED_SHOWN = 10  # recordings that the summary names

OnError = Literal["stop", "skip"]


def prepare(kind: str, path: Path, directory: Path, config: PrepareConfig, *, processes: int = 1,
            on_error: OnError = "stop") -> tuple[Store, dict[str, Any]]:
    """Make a canonical store from foreign data.

    Args:
        kind: of the data, a key of `sources.CLASSES`.
        path: its folder or file.
        directory: of the new store; must not exist.
        config: what is taken from the data, and how.
        processes: number of processes that read; 1: this one.
        on_error: for a recording that cannot be read: stop, or skip and count it.

    Returns:
        The store, and the counts: the `summary` of its agent_jax.json.

    Raises:
        BadDataError: a recording cannot be read, all were skipped, or too many values lie beyond their bounds. Finished
            shards are kept for the next run.
        FileExistsError: `directory` exists, or another process is making it.
        FileNotFoundError, ModuleNotFoundError, ValueError: as `sources.open_source`.
    """
    check_on_disk(path, "--path")
    check_on_disk(directory, "--out")
    lock = DirectoryLock(directory.parent / f".{directory.name}.lock", str(directory),
                         "wait for that one to end, or prepare into another folder")
    with lock:
        source = open_source(kind, path, config)
        _check_rate(source)
        for note in source.schema.notes:  # now: it may be hours until the summary
            print(f"prepare: {note}", file=sys.stderr, flush=True)
        splits = split_recordings(source.recordings(), config.validation)
        if not splits:
            raise BadDataError(f"{path}: holds no recordings of kind {kind!r}, expected at least one")
        made_by = {key: value for key, value in dataclasses.asdict(config).items() if key not in _NOT_OF_RECORDS}
        metadata = {"action_spec": dict(source.action_spec), "state_spec": dict(source.state_spec),
                    "rate_hz": source.rate_hz, "cameras": [f"steps/observation/{name}" for name in
                                                           source.schema.cameras],
                    "prepared": {"source": kind, "path": str(path.resolve()), "config": made_by, "format": FORMAT,
                                 "notes": list(source.schema.notes), "defaults": list(source.schema.defaults)}}
        build = begin_store(directory, metadata)
        name = config.name or _default_name(path)
        state_of = _ShardStates(source, config)
        plans = [ShardPlan(kind, str(path), config, str(file), recordings, on_error, state_of(recordings))
                 for file, recordings in _shards(build, name, splits)]
        keep_shards(build, [Path(plan.path) for plan in plans])
        try:
            total = _write(plans, source, processes, config.out_of_bounds)
            if not total.records:
                raise BadDataError(f"{path}: every recording was left out; the first because of "
                                   f"{total.skipped[0]['why']}")
        except BadDataError as error:
            raise BadDataError(f"{error}\nNothing was written to {directory}; finished shards are kept in {build}, and "
                               "the same command continues with them") from error
        summary = {**dataclasses.asdict(total), "notes": list(source.schema.notes)}
        store = finish_store(directory, name, stored_features(source.schema, config), summary)
        for plan in plans:
            (directory / plan.report.name).unlink(missing_ok=True)
        return store, summary


def summary_lines(store: Store, summary: Mapping[str, Any]) -> list[str]:
    """The summary of `prepare` as lines of text."""
    sizes = ", ".join(f"{count:,} {split}" for split, count in store.splits.items())
    lines = [f"prepared: {summary['recordings']:,} recordings, {summary['episodes']:,} episodes, "
             f"{summary['steps']:,} steps in {summary['records']:,} records ({sizes}): {store.directory}"]
    lines += [f"  {note}" for note in summary["notes"]]
    lines += [f"  {count:,} of {summary['recordings']:,} recordings: {note}"
              for note, count in sorted(summary["oddities"].items())]
    for place, count in summary["outside"].items():
        lines.append(f"  {_named(place, store.metadata)}: {count:,} of {summary['steps']:,} values beyond the bounds; "
                     "training clips them")
    for split, count in store.splits.items():
        if not count:
            lines.append(f"  split {split!r} is empty: all its recordings were left out; no run can read it")
    if summary["skipped"]:
        lines.append(f"  left out: {len(summary['skipped']):,} recordings")
        lines += [f"    {item['why']}" for item in summary["skipped"][:_MAX_SKIPPED_SHOWN]]
        more = len(summary["skipped"]) - _MAX_SKIPPED_SHOWN
        lines += [f"    and {more:,} more, all in agent_jax.json"] if more > 0 else []
    return lines


def split_recordings(recordings: Sequence[Recording], validation: float) -> dict[str, list[Recording]]:
    """The recordings by split, in their order: the data's own splits, or else a share of them in "test".

    A hash of its name decides whether a recording is tested, so that new recordings move none. Of two or more
    recordings at least one is in each split.

    Raises:
        BadDataError: two recordings have the same name, or a split has a name that stores do not allow.
    """
    for recording in recordings:
        if recording.split and not is_split_name(recording.split):
            raise BadDataError(f"{recording.where}: found the split {recording.split!r}, expected a name of letters, "
                               "digits, '_' and '-', other than 'all'")
    names = [recording.name for recording in recordings]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        places = [recording.where for recording in recordings if recording.name == twice]
        raise BadDataError(f"two recordings are named {twice!r}: {places[0]} and {places[1]}; expected one of each")
    fraction = {name: int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64
                for name in names}
    free = sorted((recording.name for recording in recordings if not recording.split), key=fraction.__getitem__)
    tested = sum(fraction[name] < validation for name in free)
    tested = min(max(tested, 1), len(free) - 1) if validation and len(free) > 1 else 0
    test = set(free[:tested])
    splits: dict[str, list[Recording]] = {}
    for recording in recordings:
        splits.setdefault(recording.split or ("test" if recording.name in test else "train"), []).append(recording)
    return dict(sorted(splits.items()))


def _write(plans: Sequence[ShardPlan], source: Source, processes: int, limit: float) -> Counts:
    """Write all shards; the total of their counts, in their order."""
    by_number: dict[int, Counts] = {}
    so_far = Counts()
    with contextlib.closing(run_shards(plans, source, processes)) as written:
        for number, counts in written:
            by_number[number] = counts
            so_far.add(counts)
            if so_far.steps >= _EARLY_STEPS or len(by_number) == len(plans):
                _check_bounds(source, so_far, limit)
    total = Counts()
    for number in sorted(by_number):
        total.add(by_number[number])
    return total


def _shards(build: Path, name: str, splits: dict[str, list[Recording]]) -> Iterator[tuple[Path, list[Recording]]]:
    """The file and recordings of each shard; a split's recordings are divided evenly."""
    everything = [recording for recordings in splits.values() for recording in recordings]
    files = [file for file in {Path(recording.where) for recording in everything if not recording.size}
             if file.is_file()]
    total = sum(recording.size for recording in everything) + sum(file.stat().st_size for file in files)
    mean = total / len(everything)
    most = int(min(max(_SHARD_BYTES // max(mean, 1), 1), _MAX_SHARD_RECORDINGS))
    for split, recordings in splits.items():
        count = -(-len(recordings) // most)
        for index in range(count):
            part = recordings[index * len(recordings) // count : (index + 1) * len(recordings) // count]
            yield shard_path(build, name, split, index, count), part


def _check_rate(source: Source) -> None:
    spec = declared_spec(ActionSpec, source.action_spec)
    if spec and spec.rate_hz and source.rate_hz and abs(spec.rate_hz / source.rate_hz - 1) > 0.01:
        raise ValueError(f"config.action_spec: {spec.name!r} has rate_hz={spec.rate_hz:g}, but the data have "
                         f"{source.rate_hz:g} steps a second; set config.rate_hz={spec.rate_hz:g} to take every n-th "
                         "step where the rates divide, or correct the spec"
                         + help_page("guides/data.md", "Fewer steps per second"))


def _check_bounds(source: Source, counts: Counts, limit: float) -> None:
    """Refuse data with too many values beyond the bounds of the specs."""
    bounds = spec_bounds(source)
    for place, count in sorted(counts.outside.items(), key=lambda item: -item[1]):
        key, _, index = place.rstrip("]").partition("[")
        field = "action_spec" if key in source.schema.actions else "state_spec"
        most = max(limit, _OUTSIDE_QUANTILES) if field in source.schema.defaults else limit
        if count > most * counts.steps:
            low, high = (float(bound[int(index)] if index else bound) for bound in bounds[key])
            name = _named(place, {"action_spec": source.action_spec, "state_spec": source.state_spec})
            raise BadDataError(f"{name}: {count:,} of {counts.steps:,} values ({count / counts.steps:.1%}) lie beyond "
                               f"the bounds {low:g} to {high:g} of its spec, expected at most {most:.1%}; correct "
                               "bounds or units in config.action_spec or config.state_spec, or raise "
                               "config.out_of_bounds to have them clipped")


def _named(place: str, metadata: Mapping[str, Any]) -> str:
    """A place in a spec of the metadata, with its name if it has one."""
    for kind in (ActionSpec, StateSpec):
        spec = declared_spec(kind, metadata.get(f"{kind.kind}_spec", {}))
        if spec and spec.named(place) != place:
            return spec.named(place)
    return place


class _ShardStates:
    """Hashes of a shard's recordings, their files and the features: an equal hash means an equal shard."""

    def __init__(self, source: Source, config: PrepareConfig):
        self._source, self._features = source, stored_features(source.schema, config).to_json()
        self._of_file = functools.lru_cache(2**16)(_file_state)  # tables are queried for every shard

    def __call__(self, recordings: Sequence[Recording]) -> str:
        files = {file for recording in recordings for file in self._source.files(recording)}
        states = [(str(file), self._of_file(file)) for file in sorted(files)]
        content = [self._features, [dataclasses.asdict(recording) for recording in recordings], states]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _file_state(file: Path) -> tuple[int, int] | None:
    """Size and modification time; None: the file is missing."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _default_name(path: Path) -> str:
    """The data set's name: that of the folder, or of its parent if the folder is a version."""
    resolved = path.resolve()
    named = resolved.parent if re.fullmatch(r"\d+(\.\d+)*", resolved.name) else resolved
    return re.sub(r"\W+", "_", named.stem if named.is_file() else named.name).strip("_").lower() or "data"
