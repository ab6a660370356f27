"""What a workdir holds of a run, read without its arrays: metrics, report, config, parameters, pictures, videos.

A run may be under way, or have ended early: only metrics.jsonl must be there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from etils import epath

from agent_jax.checkpoints import checkpoint
from agent_jax.checkpoints.meta import DamagedCheckpointError
from agent_jax.config import Config, DomainConfig
from agent_jax.json_files import parse_json, read_json_object

_METRICS = "metrics.jsonl"  # train/metrics.py has its format


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """A run as its workdir shows it."""

    name: str  # on the page
    directory: Path
    records: list[dict[str, Any]]  # lines of metrics.jsonl
    report: dict[str, Any]  # report.json; {} before the end of the run
    config: dict[str, Any]  # {} without report and checkpoint
    domains: dict[str, Any]  # Domain.to_meta() of the newest checkpoint; {} without one
    parameters: dict[str, list[int]]  # shape by path
    notes: list[str]  # what is missing, for the page

    @classmethod
    def read(cls, directory: Path, checkpoints: epath.Path | None = None) -> Self:
        """Read a workdir.

        Args:
            directory: the workdir.
            checkpoints: the directory of its checkpoints, if it is elsewhere (in a bucket).

        Raises:
            FileNotFoundError: no such directory, or one without metrics.jsonl.
            ValueError: a file has another format; names file and line.
        """
        if not directory.is_dir():
            raise FileNotFoundError(f"{directory}: no such directory, expected the workdir of a run (--workdir of "
                                    "python -m agent_jax.train)")
        if not (directory / _METRICS).is_file():
            raise FileNotFoundError(f"{directory}: found no {_METRICS}, expected the workdir of a run that has begun "
                                    "its first step; name the directory that train printed as workdir")
        records = _read_metrics(directory / _METRICS)
        path, notes = directory / "report.json", []
        report = read_json_object(path) if path.is_file() else {}
        meta = _newest_meta(checkpoints or epath.Path(directory) / "checkpoints", notes)
        config = report.get("config") or meta.get("config") or {}
        last = max((record["step"] for record in records), default=0)
        if not report:
            of = f" of {config['train']['steps']:,}" if config.get("train", {}).get("steps") else ""
            notes.append(f"This run has not ended: its last line in {_METRICS} is of step {last:,}{of}. Figures that "
                         "are made at the end (success, phases, versions) are missing.")
        elif report.get("steps", last) < last:
            notes.append(f"report.json is of step {report['steps']:,}; the run went on to step {last:,}.")
        if not config:
            notes.append("The config is unknown: there is neither a report.json nor a checkpoint.")
        shapes = {path.removeprefix("params/"): entry["shape"] for path, entry in meta.get("fingerprint", {}).items()
                  if path.startswith("params/")}
        return cls(directory.resolve().name, directory, records, report, config, meta.get("domains", {}), shapes,
                   notes)

    def of_split(self, split: str) -> list[dict[str, Any]]:
        """The records of "train", "validation" or "closed_loop"."""
        return [record for record in self.records if record["split"] == split]

    def curve(self, split: str, *path: str) -> list[tuple[float, float]]:
        """(step, value) of the records that have a number at a path of keys."""
        found = []
        for record in self.of_split(split):
            value: Any = record
            for key in path:
                value = value.get(key) if isinstance(value, Mapping) else None
            if isinstance(value, (int, float)) and math.isfinite(value):
                found.append((record["step"], value))
        return found

    @property
    def losses(self) -> list[str]:
        """Names of the losses and accuracies."""
        return list(dict.fromkeys(name for record in self.records for name in record.get("losses", ())))

    @property
    def domain_names(self) -> list[str]:
        """Names of the domains with losses."""
        return list(dict.fromkeys(name for record in self.records for name in record.get("domains", ())))

    def changed_fields(self) -> dict[str, Any]:
        """The config's fields, by dotted name, that differ from the defaults."""
        defaults, of_domain = flat(dataclasses.asdict(Config())), flat(dataclasses.asdict(DomainConfig()))
        for name in self.config.get("data", {}).get("domains", {}):
            defaults |= {f"data.domains.{name}.{field}": value for field, value in of_domain.items()}
        return {name: value for name, value in flat(self.config).items()
                if name not in defaults or defaults[name] != value}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of a config by dotted name; lists are values, and tuples are lists, as in JSON."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value and key not in ("action_spec", "state_spec"):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = list(value) if isinstance(value, tuple) else value
    return found


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    lines = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last line end is empty or half written
        record = parse_json(line, f"{path}:{number}")
        if not (isinstance(record, dict) and isinstance(record.get("step"), int) and "split" in record
                and isinstance(record.get("losses", record.get("success")), dict)):
            raise ValueError(f"{path}:{number}: found {line[:80].decode(errors='replace')!r}, expected a JSON object "
                             "with step, split and losses (or success); the run is of a development version, or the "
                             "file is of another program: view it with the version that wrote it")
        records.append(record)
    return records


def _newest_meta(checkpoints: epath.Path, notes: list[str]) -> dict[str, Any]:
    """The meta dict of the newest readable checkpoint; {} without one."""
    for step in reversed(checkpoint.steps(checkpoints)):
        try:
            return checkpoint.read_meta(checkpoints, step)
        except (DamagedCheckpointError, OSError, ValueError) as error:
            notes.append(f"Checkpoint {step} cannot be read: {error}")
    return {}
