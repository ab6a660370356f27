"""Re-executes training steps and validations from the checkpoints of a run, for `study verify`.

    checkpoint s --restore--> state, position in the data --steps s + 1, ...--> record of a line == metrics.jsonl?

A line of metrics.jsonl is the mean over the steps since the line before, so only lines whose steps all lie after s are
compared. Step 0 is a checkpoint as well: the first state follows from the config.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.checkpoints import checkpoint
from agent_jax.checkpoints.checkpoint import Checkpoints
from agent_jax.config import Config, from_config_dict
from agent_jax.data.pipeline.loader import Loader
from agent_jax.data.pipeline.run_data import open_data
from agent_jax.envs import CLIPS, NAMES
from agent_jax.envs.collect import demonstrations_directory
from agent_jax.json_files import parse_json
from agent_jax.models.choice_table import ChoiceTable
from agent_jax.models.lora import LORA, merged, parameter_shapes
from agent_jax.runtime.sharding import check_divides, make_mesh, rows_here, shard_batch
from agent_jax.study.agreement import VERDICTS, compare
from agent_jax.train.metrics import METRICS_FILE, Record
from agent_jax.train.optimizer import make_optimizer
from agent_jax.train.restart import start
from agent_jax.train.run import train_record, validation_record
from agent_jax.train.state import TrainState, abstract_state
from agent_jax.train.step import make_eval_step, make_train_step

_UNCOMPARED = ("time", "rates")  # of a line: they differ in each execution


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of metrics.jsonl."""

    number: int  # from 1
    record: Mapping[str, Any]
    since: int = 0  # of a line of training: the step of the line of training before

    @property
    def step(self) -> int:
        """Updates done."""
        return self.record["step"]


def read_lines(workdir: Path) -> dict[str, list[Line]]:
    """The lines of metrics.jsonl by split; a last line that is cut off does not count.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not one of metrics.jsonl; names it.
    """
    path = workdir / METRICS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected the workdir of a run with its metrics")
    found: dict[str, list[Line]] = {}
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        record = parse_json(text, f"{path}:{number}")
        if not isinstance(record, dict) or type(record.get("step")) is not int or "split" not in record:
            raise ValueError(f"{path}:{number}: found {text[:80]!r}, expected a JSON object with step and split")
        of_split = found.setdefault(record["split"], [])
        of_split.append(Line(number, record, of_split[-1].step if of_split else 0))
    return found


def config_of(meta: Mapping[str, Any], where: Any) -> Config:
    """The config in the meta dict of a checkpoint.

    Raises:
        ValueError: this version cannot load it; names the field.
    """
    try:
        return from_config_dict(meta["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}, step {meta.get('step')}: its config cannot be loaded: {error}; verify the run with "
                         "the version of agent_jax that trained it") from error


class Replay:
    """Executes steps of one run, with a config of one of its checkpoints; writes nothing into the workdir."""

    def __init__(self, directory: Any, meta: Mapping[str, Any], config: Config) -> None:
        """Open the data and build the steps.

        Raises:
            FileNotFoundError, ValueError: the data are gone or are others; this machine cannot have the config's mesh.
        """
        self.config, self._directory = config, directory
        self._data = open_data(config, dict(_gathered(config)))
        if difference := self._data.vocabulary.difference(Vocabulary.from_json(meta["vocabulary"])):
            raise ValueError(f"{directory}: trained with another vocabulary (there) than the data give now (here): "
                             f"{difference}; restore the data of the run")
        self._mesh = make_mesh(config.mesh)
        check_divides(config, self._mesh)
        self._optimizer = make_optimizer(config.optimizer, config.train.steps, parameter_shapes(config))
        self._choices = ChoiceTable.of({domain.index: domain.spec for domain in self._data.domains})
        self._names = [domain.name for domain in self._data.domains]
        self._step = make_train_step(config, self._mesh, self._optimizer, self._choices)

    def restore(self, step: int) -> tuple[TrainState, dict[str, Any] | None]:
        """The state at a checkpoint and its position in the data; of step 0 the first ones of the run."""
        if step:
            abstract = abstract_state(self.config, self._mesh, self._optimizer)
            state, meta = checkpoint.restore_parameters(self._directory, abstract, step=step, subtree="")
            return state, meta["data_state"]
        empty = Checkpoints(self._directory / "none", keep_latest=1, keep_best=0)  # reads and writes nothing
        first = start(self.config, self._mesh, self._optimizer, self._data.vocabulary, self._data.domains, empty)
        return first.state, first.data_state

    def lines(self, begin: int, lines: Sequence[Line]) -> Iterator[tuple[Line, list[Record]]]:
        """The records of lines after checkpoint `begin`, in the order of their steps.

        Each comes with two candidates: the mean over the steps since the line before, and the last step alone, which is
        what the first line of a resumed run holds.
        """
        state, data_state = self.restore(begin)
        part, parts = rows_here(self._mesh)
        loader = Loader(self._data.train, self.config.train.batch_size, process_index=part, process_count=parts,
                        prefetch=min(2, lines[-1].step - begin), state=data_state)
        step, metrics = begin, {}
        with contextlib.closing(loader):
            for line in lines:
                while step < line.step:
                    state, found = self._step(state, shard_batch(next(loader)[0], self._mesh))
                    step += 1
                    metrics[step] = jax.device_get(found)
                interval = [metrics[one] for one in range(line.since + 1, step + 1)]
                yield line, [train_record(step, members, self.config, self._names)
                             for members in (interval, interval[-1:])]

    def validation(self, step: int) -> Record:
        """The validation of the parameters at a checkpoint."""
        params = self.restore(step)[0].acting_params
        if LORA in params:
            params = jax.jit(functools.partial(merged, scale=self.config.lora.scale))(params)
        evaluate = make_eval_step(self.config, self._mesh, self._choices)
        found = [jax.device_get(evaluate(params, shard_batch(batch, self._mesh)))
                 for batch in self._data.validation_batches(self.config, *rows_here(self._mesh))]
        return validation_record(step, found, self.config, self._names)


def _gathered(config: Config) -> Iterator[tuple[str, Path]]:
    """The data sets that the run gathered, by domain; none is collected.

    Raises:
        FileNotFoundError: a data set is gone.
        ValueError: it is from an environment that is not of this package, which a checkpoint must not choose to import.
    """
    for name, demonstrations in config.data.gathered.items():
        field, directory = config.data.demonstrations_field(name), Path(config.data.directory).expanduser()
        if demonstrations.environment not in (*NAMES, CLIPS):
            raise ValueError(f"{field}.environment={demonstrations.environment!r}: not an environment of this package, "
                             "and not imported; only runs with data of this package's environments, or with "
                             f"config.data.domains.{name}.path, can be verified")
        path = demonstrations_directory(demonstrations, directory, field)
        if not path.is_dir():
            raise FileNotFoundError(f"{field}: its data set {path} is gone; expected the demonstrations of the run. A "
                                    "directory of another name is from another version of the simulator")
        yield name, path


class StepVerifier:
    """Draws steps and validations of a run and compares them with metrics.jsonl."""

    def __init__(self, workdir: Path, directory: Any, lines: Mapping[str, Sequence[Line]], rng: np.random.Generator,
                 tolerance: float) -> None:
        """Find what can be compared.

        Args:
            workdir: of the run.
            directory: of its checkpoints, at least one.
            lines: of `read_lines`.
            rng: draws.
            tolerance: of `compare`.
        """
        self._workdir, self._directory, self._rng, self._tolerance = workdir, directory, rng, tolerance
        self._lines = lines
        self._steps = checkpoint.steps(directory)
        self._metas = functools.cache(lambda step: checkpoint.read_meta(directory, step))
        self._replays: list[Replay] = []

    def _replay(self, step: int) -> Replay:
        """With the config of the process that executed this step: that of the first checkpoint from it on."""
        meta = self._metas(next((one for one in self._steps if one >= step), self._steps[-1]))
        config = config_of(meta, self._directory)
        found = next((one for one in self._replays if one.config == config), None)
        if found is None:
            self._replays.append(found := Replay(self._directory, meta, config))
        return found

    def after(self, begin: int) -> list[Line]:
        """The lines of training that can be executed from checkpoint `begin`, up to the next checkpoint's."""
        later = next((step for step in self._steps if step > begin), None)
        return [line for line in self._lines.get("train", ())
                if line.since >= begin and (later is None or line.since < later)]

    def verify_steps(self, count: int) -> list[dict[str, Any]]:
        """Execute at least `count` steps, or all that have lines, after checkpoints drawn at random.

        Returns:
            For each line {"line", "checkpoint", "steps": [first, last], "verdict", "differences"}.

        Raises:
            ValueError: no line of training lies after a checkpoint.
        """
        begins = [begin for begin in (0, *self._steps) if self.after(begin)]
        if not begins:
            raise ValueError(f"{self._workdir}: no line of training in metrics.jsonl has all its steps after step 0 or "
                             f"one of the checkpoints {self._steps}; nothing can be executed again")
        results, left = [], count
        for begin in self._rng.permutation(begins).tolist():
            if left <= 0:
                break
            chosen = []
            for line in self.after(begin):
                if line.step - begin > left and chosen:
                    break
                chosen.append(line)
            left -= chosen[-1].step - begin
            for line, candidates in self._replay(begin + 1).lines(begin, chosen):
                found = [self._compared(line, one) for one in candidates]
                best = min((0, 1), key=lambda i: VERDICTS.index(found[i][0]))
                results.append({"line": line.number, "checkpoint": begin,
                                "steps": [line.step if best else line.since + 1, line.step],
                                "verdict": found[best][0], "differences": found[best][1]})
        return results

    def verify_validations(self, count: int) -> list[dict[str, Any]]:
        """Repeat validations of checkpoints drawn at random, at most `count`; results as `verify_steps`."""
        by_step = {line.step: line for line in self._lines.get("validation", ())}
        steps = [step for step in self._steps if step in by_step]
        chosen = sorted(self._rng.permutation(steps).tolist()[:count])
        results = []
        for step in chosen:
            verdict, differences = self._compared(by_step[step], self._replay(step).validation(step))
            results.append({"line": by_step[step].number, "checkpoint": step, "verdict": verdict,
                            "differences": differences})
        return results

    def _compared(self, line: Line, record: Record) -> tuple[str, dict[str, Any]]:
        found = {name: value for name, value in json.loads(record.to_json()).items() if name not in _UNCOMPARED}
        return compare(line.record, found, self._tolerance)
