"""`python -m agent_jax.doctor data`: reads a sample of a data set once and runs every detector on it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from agent_jax.data.inspect.check import check
from agent_jax.doctor.detectors import DETECTORS
from agent_jax.doctor.episodes import DataSet, EpisodeRecord, fingerprint_of, summarise
from agent_jax.doctor.finding import Finding, Place, draw
from agent_jax.doctor.readers import UNREADABLE, Reader, StoreReader, open_reader, sample
from agent_jax.hub import located_data

CHECKED_RECORDS = 20_000  # a larger store is left to `check`, and its leaks to the first so many of each split


@dataclasses.dataclass
class DataReport:
    """The result of `doctor data`."""

    lines: list[str]
    figures: dict[str, Any]  # JSON
    findings: list[Finding]


def examine(path: Path, *, kind: str = "", overrides: Sequence[str] = (), episodes: int,
            out: Path | None = None) -> DataReport:
    """Examine a data set.

    Args:
        path: folder, file, or ORG/NAME of a data set on the Hugging Face hub.
        kind: "" to recognise the format, or a kind of `prepare --source`.
        overrides: `--config.FIELD=VALUE`, as for `check` if the data are prepared, else as for `prepare`.
        episodes: how many to read, evenly spaced; 0: all.
        out: folder for the pictures; None: none are drawn.

    Raises:
        FileNotFoundError, ValueError: there are no data, or none that can be read.
    """
    started = time.monotonic()
    if episodes < 0:
        raise ValueError(f"--episodes={episodes}: expected a number of episodes, or 0 for all")
    reader = open_reader(located_data(path), kind, overrides)
    chosen = sample(reader.splits, episodes)
    records, findings = _read(reader, chosen)
    total = sum(reader.splits.values())
    lines = [f"{path}: {len(records):,} of {total:,} records read"
             f"{'' if len(chosen) == total else f' (--episodes={episodes}; 0 reads all)'}", *reader.notes]
    whole = total <= CHECKED_RECORDS
    if isinstance(reader, StoreReader) and (whole or not episodes):
        findings += [Finding("check", "wrong", problem, "see `python -m agent_jax.data check`")
                     for problem in check(reader.store.directory, reader.config).problems]
    elif isinstance(reader, StoreReader):
        lines.append(f"`python -m agent_jax.data check` was left out: it reads all records, here more than "
                     f"{CHECKED_RECORDS:,}; run it, or pass --episodes=0")
    prints = reader.fingerprints(CHECKED_RECORDS) if len(reader.splits) > 1 else []
    data = DataSet(records, reader.actions, reader.states, reader.rate_hz, reader.absolute,
                   prints or [fingerprint_of(record) for record in records])
    if records:
        findings += [finding for detector in DETECTORS for finding in detector(data)]
    if out:
        for old in out.glob("*.png") if out.is_dir() else ():
            if old.name.split("-")[0].removesuffix(".png") in {detector.__name__ for detector in DETECTORS}:
                old.unlink()
    pictures = [draw(finding, reader, data, out) if out else "" for finding in findings]
    seconds = time.monotonic() - started
    findings_lines = [line for finding, picture in zip(findings, pictures, strict=True)
                      for line in finding.lines(picture)]
    lines += ["", *(findings_lines or ["nothing was found"]), "", f"{len(DETECTORS)} detectors, {seconds:.1f} s"]
    figures = {"path": str(path), "splits": dict(reader.splits), "records_read": len(records), "seconds": seconds,
               "detectors": [detector.__name__ for detector in DETECTORS], "notes": reader.notes,
               "cameras": data.cameras, "actions": [column.name for column in data.actions],
               "states": [column.name for column in data.states],
               "findings": [finding.to_json(picture) for finding, picture in zip(findings, pictures, strict=True)]}
    return DataReport(lines, figures, findings)


def _read(reader: Reader, chosen: Sequence[tuple[str, int]]) -> tuple[list[EpisodeRecord], list[Finding]]:
    """The records that can be read, and a finding of those that cannot."""
    records, damaged, places = [], [], []
    for split, number in tqdm(chosen, "reading", disable=None, leave=False):
        try:
            record = summarise(reader.read(split, number))
            if len(record):
                records.append(record)
                continue
            damaged.append(f"{split}/{number}: no steps, expected at least one")
        except UNREADABLE as error:
            damaged.append(str(error))
        places.append(Place(split, number))
    if not damaged:
        return records, []
    text = f"{len(damaged):,} of {len(chosen):,} records cannot be read; the first: {damaged[0]}"
    return records, [Finding("unreadable", "wrong", text, "copy these files again, or leave the records out", places)]
