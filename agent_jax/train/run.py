"""A run: config, data, mesh, first state, compiled steps, and what is done with them outside of the loop (loop.py)."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh

from agent_jax.checkpoints import checkpoint
from agent_jax.checkpoints.checkpoint import Checkpoints
from agent_jax.checkpoints.retention import metric_key
from agent_jax.config import Config
from agent_jax.data.pipeline.loader import Loader
from agent_jax.data.pipeline.run_data import RunData, open_data
from agent_jax.envs.collect import ensure_demonstrations
from agent_jax.evaluate.in_training import InTrainingEvaluation, by_domain
from agent_jax.help_pages import help_page
from agent_jax.models.agent import Params
from agent_jax.models.choice_table import ChoiceTable
from agent_jax.models.lora import LORA, merged, parameter_shapes
from agent_jax.models.losses import LossSums, total
from agent_jax.runtime import distributed
from agent_jax.runtime.directory_lock import DirectoryLock
from agent_jax.runtime.sharding import check_divides, make_mesh, on_host, rows_here, shard_batch
from agent_jax.train.early_stopping import EarlyStopping, checkpoint_metrics
from agent_jax.train.metrics import MetricsLog, Rates, Record, SuccessRecord, mean_losses, rates
from agent_jax.train.optimizer import make_optimizer
from agent_jax.train.phases import DEMONSTRATIONS, EVALUATION, SAVING, START, Phases
from agent_jax.train.preflight import check_machine, describe
from agent_jax.train.restart import Start, checkpoint_meta, start
from agent_jax.train.run_files import LOCK_FILE, RunFiles
from agent_jax.train.sharding_report import bytes_by_part, bytes_table, mesh_lines
from agent_jax.train.state import TrainState, state_shardings
from agent_jax.train.step import StepMetrics, make_eval_step, make_train_step
from agent_jax.train.wandb_run import WandbRun
from agent_jax.view.reconstruction import PICTURED_IMAGES, write_picture


class Run:
    """What the loop holds on to; everything in it is made before the first step."""

    def __init__(self, config: Config, data: RunData, mesh: Mesh, workdir: Path | epath.Path, phases: Phases):
        """Build the step and find the first state; `open_run` has made all that is given here.

        Raises:
            ValueError, OSError, DamagedCheckpointError: a user error, in one message.
        """
        self.config, self.data, self.mesh, self.workdir, self.phases = config, data, mesh, workdir, phases
        self.stopped_by = ""  # SIGTERM or Ctrl-C, if one asked the loop to end
        self.wandb: WandbRun | None = None  # opened with the streams, for the whole process
        self.files = RunFiles(epath.Path(workdir), silent=not distributed.leads())
        self.lock = DirectoryLock(epath.Path(workdir) / LOCK_FILE, str(workdir),
                                  "wait until that run has ended, or train in another --workdir"
                                  + help_page("guides/checkpoints.md", "Two runs in one workdir"))
        self.rows_here = rows_here(mesh)
        self.optimizer = make_optimizer(config.optimizer, config.train.steps, parameter_shapes(config))
        choices = ChoiceTable.of({domain.index: domain.spec for domain in data.domains})
        self.train_step = distributed.compiled_together(make_train_step(config, mesh, self.optimizer, choices))
        self.eval_step = distributed.compiled_together(make_eval_step(config, mesh, choices))
        self.checkpoints = Checkpoints(workdir / "checkpoints", keep_latest=config.checkpoint.keep_latest,
                                       keep_best=config.checkpoint.keep_best,
                                       best_metric=metric_key(config.checkpoint.best_metric))
        acts = config.closed_loop.acts and distributed.leads()
        self.in_training = InTrainingEvaluation(config, data.domains) if acts else None
        with self.alone() if self.checkpoints.steps() else contextlib.nullcontext():  # it may set damaged steps aside
            self.first: Start = start(config, mesh, self.optimizer, data.vocabulary, data.domains, self.checkpoints)
        begun = int(jax.device_get(self.first.state.step))
        resumed = checkpoint.read_meta(self.checkpoints.directory, begun) if begun else None
        self.early_stopping = EarlyStopping(config, resumed)
        self._merged = jax.jit(functools.partial(merged, scale=config.lora.scale), out_shardings={
            name: part for name, part in state_shardings(self.first.state).params.items() if name != LORA})
        self._steps = self.checkpoints.steps()
        distributed.check_shared(epath.Path(workdir))
        print(self._head(), flush=True)

    def alone(self) -> contextlib.AbstractContextManager[Any]:
        """Inside, no other run writes to the workdir: process 0 holds its lock, for all of them.

        Raises:
            LockedError: another run does.
        """
        return self.lock if distributed.leads() else contextlib.nullcontext()

    def _head(self) -> str:
        """Mesh, batch arithmetic, parameters and source of the first state, for the top of the log."""
        size, state = self.data.size, self.first.state
        return "\n".join([
            mesh_lines(self.mesh, self.config.train),
            f"row: {size.slots} slots, {size.frames} images, {size.targets} targets",
            bytes_table(bytes_by_part(state, state_shardings(state))),
            f"start: {self.first.source}",
            f"workdir: {self.workdir}",
        ])

    def open_streams(self) -> tuple[Loader, MetricsLog]:
        """What the loop reads and writes at every step, and the workdir's lock; whoever opens it closes it.

        Raises:
            LockedError: another run writes to the workdir.
            ValueError: another one has since this one looked for a checkpoint; the data have another number of windows
                than when the run was begun; metrics.jsonl is none.
        """
        with contextlib.ExitStack() as opened:
            opened.enter_context(self.alone())
            if self._steps != (now := self.checkpoints.steps()):
                raise ValueError(f"{self.workdir}: another run has written to it since this one started (checkpoints "
                                 f"{self._steps} then, {now} now); start the same command again")
            loader = self._open_loader()
            opened.callback(loader.close)
            begun = int(jax.device_get(self.first.state.step))
            over = begun == self.config.train.steps or self.early_stopping.ended
            if distributed.leads():
                self.wandb = WandbRun(self.config, epath.Path(self.workdir), self.files.directory)
            log = MetricsLog(self.files.directory, begun, evaluated_again=over, silent=not distributed.leads(),
                             wandb=self.wandb)
            opened.pop_all()  # `train` closes them
        return loader, log

    def close(self) -> None:
        """Give the workdir's lock back."""
        if distributed.leads():
            self.lock.release()

    def _open_loader(self) -> Loader:
        data, (part, parts) = self.config.data, self.rows_here
        return Loader(self.data.train, self.config.train.batch_size, process_index=part, process_count=parts,
                        workers=data.workers, prefetch=data.prefetch, state=self.first.data_state)

    def validate(self, state: TrainState, stopped: Callable[[], bool]) -> Record | None:
        """Losses of the held-out rows; None if it was `stopped` before they were all read."""
        with self.phases.time(EVALUATION):
            params = self.acting_params(state)
            found = []
            for batch in self.data.validation_batches(self.config, *self.rows_here):
                # Read one by one: neither all batches on the device nor several programs under way.
                if stopped():
                    return None
                found.append(jax.device_get(self.eval_step(params, shard_batch(batch, self.mesh))))
                distributed.progress("validation")
            return validation_record(int(jax.device_get(state.step)), found, self.config, self._domain_names())

    def acting_params(self, state: TrainState) -> Params:
        """The model's parameters to evaluate and act with: averaged where the run averages, adapters merged."""
        params = state.acting_params
        return self._merged(params) if LORA in params else params

    def act(self, state: TrainState) -> SuccessRecord | None:
        """Success in the simulator, by the parameters of this step; None if the simulator failed, which is printed.

        Process 0 acts, and the others wait for it: they return None.
        """
        with self.phases.time(EVALUATION):
            params = on_host(self.acting_params(state))
            success = distributed.by_leader(lambda: self._acted(params))
            return SuccessRecord(int(jax.device_get(state.step)), time.time(), success) if success else None

    def _acted(self, params: Any) -> dict[str, Any] | None:
        assert self.in_training is not None
        try:
            return by_domain(self.in_training(params))
        except (ValueError, RuntimeError, OSError) as error:  # no reason to end the training
            print(f"closed loop: failed, the training goes on: {error}", flush=True)
            return None

    def record(self, step: int, interval: list[StepMetrics], since: float | None, waited: float = 0.0) -> Record:
        """The log record of some steps, the last of which ended with `step` updates done. Waits for them.

        Args:
            step: updates done after the last of them.
            interval: their metrics.
            since: when they began, by `time.perf_counter`; None: no rates, they were compiled too.
            waited: seconds of it spent waiting for batches.
        """
        found = jax.device_get(interval)
        seconds = time.perf_counter() - since if since is not None else None
        speed = None if seconds is None else rates(
            steps=len(found), frames=sum(int(m.frames) for m in found), slots=sum(int(m.slots) for m in found),
            seconds=seconds, waited=waited, left=self.config.train.steps - step)
        return train_record(step, found, self.config, self._domain_names(), speed)

    def save(self, state: TrainState, data_state: dict[str, Any] | None, record: Record | None) -> None:
        """Save this step, with its validation where there is one."""
        with self.phases.time(SAVING):
            if distributed.leads():
                self.lock.check()
            metrics = checkpoint_metrics(record, self.config.checkpoint.best_metric)
            meta = checkpoint_meta(self.config, self.data.vocabulary, self.data.domains, data_state)
            meta |= self.early_stopping.to_meta()
            self.checkpoints.save(int(jax.device_get(state.step)), state, meta, metrics)
        self.files.try_to_copy()

    def picture(self, state: TrainState, step: int) -> None:
        """Write a picture of reconstructed images; one that cannot be written is logged, and costs no more."""
        with self.phases.time(EVALUATION):
            rows = self.data.first_validation_rows(self.config, PICTURED_IMAGES)
            path = self.files.directory / "pictures" / f"reconstruction-{step}.png"
            try:
                write_picture(path, self.config, self.acting_params(state), rows)
            except OSError as error:
                logging.warning("%s was not written: %s", path, error)

    def _domain_names(self) -> list[str]:
        return [domain.name for domain in self.data.domains]


def train_record(step: int, found: Sequence[StepMetrics], config: Config, domains: Sequence[str],
                 speed: Rates | None = None) -> Record:
    """The log record of some steps."""
    sums, weights = _added([(metrics.sums, metrics.weights) for metrics in found])
    losses, by_domain = mean_losses(sums, weights, domains, classes=config.model.classes > 0)
    return Record(step, "train", time.time(), float(np.mean([m.loss for m in found])), losses, by_domain,
                  float(found[-1].gradient_norm), float(found[-1].learning_rate), speed)


def validation_record(step: int, found: list[tuple[LossSums, LossSums]], config: Config, domains: Sequence[str]
                      ) -> Record:
    """The log record of a validation, of the sums and weights of its batches; other arguments as `train_record`."""
    sums, weights = _added(found)
    losses, by_domain = mean_losses(sums, weights, domains, classes=config.model.classes > 0)
    return Record(step, "validation", time.time(), float(total(sums, weights, config.loss)), losses, by_domain)


def open_run(config: Config, workdir: Path | epath.Path, phases: Phases) -> Run:
    """Check the machine, gather demonstrations, open the data, complete the config, and begin the run.

    Raises:
        ValueError, OSError, ModuleNotFoundError, DamagedCheckpointError, DemonstrationsError: an error in one message.
    """
    check_machine(config, resumes=bool(checkpoint.steps(workdir / "checkpoints")))
    mesh = make_mesh(config.mesh)
    check_divides(config, mesh)
    print(describe(config), flush=True)
    gathered = {}
    for name, demonstrations in sorted(config.data.gathered.items()):
        with phases.time(DEMONSTRATIONS):
            gathered[name] = distributed.leader_first(functools.partial(
                ensure_demonstrations, demonstrations, Path(config.data.directory).expanduser(),
                config.data.demonstrations_field(name)))
    with phases.time(START):
        data = open_data(config, gathered)
        distributed.check_same(data.facts(), "give all hosts the same data")
        print(data.summary(), flush=True)
        return Run(config.with_vocabulary_size(data.vocabulary.size), data, mesh, workdir, phases)


def _added(found: list[tuple[LossSums, LossSums]]) -> tuple[LossSums, LossSums]:
    """The sums and the weights of several batches, each added up."""
    return jax.tree.map(lambda *leaves: np.sum(leaves, axis=0), *found)
