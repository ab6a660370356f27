"""The training loop.

Mesh, data, start (restart.py has the order of what a run may start from), then the loop: validate if due, act in the
simulator if due, save if due, step, log the step before; in the end save, act, report. Of several processes
(runtime/distributed.py) all take every step, and process 0 alone prints, logs and acts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh

from agent_jax.checkpoints import checkpoint
from agent_jax.checkpoints.checkpoint import Checkpoints
from agent_jax.config import Config
from agent_jax.data.pipeline.loader import Loader
from agent_jax.data.pipeline.run_data import RunData, open_data
from agent_jax.data.store.episode import RecordError
from agent_jax.envs.collect import ensure_demonstrations
from agent_jax.evaluate.closed_loop import without_episodes
from agent_jax.evaluate.in_training import InTrainingEvaluation
from agent_jax.models.agent import abstract_params
from agent_jax.models.choice_table import ChoiceTable
from agent_jax.models.losses import LossSums, total
from agent_jax.runtime import distributed
from agent_jax.runtime.directory_lock import DirectoryLock
from agent_jax.runtime.preemption import StopRequest
from agent_jax.runtime.sharding import check_divides, make_mesh, on_host, rows_here, shard_batch
from agent_jax.train import report
from agent_jax.train.metrics import MetricsLog, Record, SuccessRecord, mean_losses, progress_line, rates, success_line
from agent_jax.train.optimizer import make_optimizer
from agent_jax.train.phases import DATA_WAIT, DEMONSTRATIONS, EVALUATION, SAVING, START, Phases
from agent_jax.train.preflight import check_machine, describe
from agent_jax.train.restart import Start, checkpoint_meta, start
from agent_jax.train.run_files import COPY_EVERY_S, LOCK_FILE, RunFiles
from agent_jax.train.sharding_report import bytes_by_part, bytes_table, mesh_lines
from agent_jax.train.state import TrainState, state_shardings
from agent_jax.train.step import StepMetrics, make_eval_step, make_train_step


def every(steps: int, step: int) -> bool:
    """Whether `step` is a multiple of `steps`; never where `steps` is 0."""
    return steps > 0 and step % steps == 0


@dataclasses.dataclass(frozen=True)
class Due:
    """What is to be done before the next step."""

    validate: bool
    act: bool  # in the simulator
    picture: bool
    save: bool

    @classmethod
    def at(cls, step: int, config: Config, *, begun: int, stopped: bool) -> Due:
        """What is due after `step` updates.

        Args:
            step: updates done.
            config: how often each is due; all but acting is due at the end, too, where acting follows the training.
            begun: step that this process started at: nothing is due at it, unless it is the last.
            stopped: a stop was requested: save, and do nothing that takes long.
        """
        last, moved = step == config.train.steps, step > begun
        return cls(
            validate=last or (moved and not stopped and every(config.train.validate_every, step)),
            act=moved and not stopped and not last and every(config.closed_loop.every, step),
            picture=last or (moved and every(config.train.picture_every, step)),
            save=last or stopped or (moved and every(config.checkpoint.every, step)),
        )


class Run:
    """What the loop holds on to; everything in it is made before the first step."""

    def __init__(self, config: Config, data: RunData, mesh: Mesh, workdir: Path | epath.Path, phases: Phases):
        """Build the step and find the first state; `open_run` has made all that is given here.

        Args:
            config: complete, with the vocabulary's size.
            data: of the config.
            mesh: of the config.
            workdir: of the run.
            phases: the time the run takes so far.

        Raises:
            ValueError, OSError, DamagedCheckpointError: a user error, in one message.
        """
        self.config, self.data, self.mesh, self.workdir, self.phases = config, data, mesh, workdir, phases
        self.stopped_by = ""  # SIGTERM or Ctrl-C, if one asked the loop to end
        self.files = RunFiles(epath.Path(workdir), silent=not distributed.leads())
        self.lock = DirectoryLock(epath.Path(workdir) / LOCK_FILE, str(workdir),
                                  "wait until that run has ended, or train in another --workdir")
        self.rows_here = rows_here(mesh)
        self.optimizer = make_optimizer(config.optimizer, config.train.steps, abstract_params(config.model))
        choices = ChoiceTable.of({domain.index: domain.spec for domain in data.domains})
        self.train_step = distributed.compiled_together(make_train_step(config, mesh, self.optimizer, choices))
        self.eval_step = distributed.compiled_together(make_eval_step(config, mesh, choices))
        self.checkpoints = Checkpoints(workdir / "checkpoints", keep_latest=config.checkpoint.keep_latest,
                                       keep_best=config.checkpoint.keep_best)
        acts = config.closed_loop.environment and distributed.leads()
        self.in_training = InTrainingEvaluation(config, data.domains) if acts else None
        with self.alone() if self.checkpoints.steps() else contextlib.nullcontext():  # it may set damaged steps aside
            self.first: Start = start(config, mesh, self.optimizer, data.vocabulary, data.domains, self.checkpoints)
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
            log = MetricsLog(self.files.directory, begun, evaluated_again=begun == self.config.train.steps,
                             silent=not distributed.leads())
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
            params = state.acting_params
            found = []
            for batch in self.data.validation_batches(self.config, *self.rows_here):
                # Read one by one: neither all batches on the device nor several programs under way.
                if stopped():
                    return None
                found.append(jax.device_get(self.eval_step(params, shard_batch(batch, self.mesh))))
                distributed.progress("validation")
            sums, weights = _added(found)
            loss = float(total(sums, weights, self.config.loss))
        losses, domains = mean_losses(sums, weights, self._domain_names(), classes=self.config.model.classes > 0)
        return Record(int(jax.device_get(state.step)), "validation", time.time(), loss, losses, domains)

    def act(self, state: TrainState) -> SuccessRecord | None:
        """Success in the simulator, by the parameters of this step; None if the simulator failed, which is printed.

        Process 0 acts, and the others wait for it: they return None.
        """
        with self.phases.time(EVALUATION):
            params = on_host(state.acting_params)
            success = distributed.by_leader(lambda: self._acted(params))
            return SuccessRecord(int(jax.device_get(state.step)), time.time(), success) if success else None

    def _acted(self, params: Any) -> dict[str, Any] | None:
        assert self.in_training is not None
        try:
            return self.in_training(params)
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
        sums, weights = _added([(metrics.sums, metrics.weights) for metrics in found])
        speed = None if seconds is None else rates(
            steps=len(found), frames=sum(int(m.frames) for m in found), slots=sum(int(m.slots) for m in found),
            seconds=seconds, waited=waited, left=self.config.train.steps - step)
        losses, domains = mean_losses(sums, weights, self._domain_names(), classes=self.config.model.classes > 0)
        return Record(step, "train", time.time(), float(np.mean([m.loss for m in found])), losses, domains,
                      float(found[-1].gradient_norm), float(found[-1].learning_rate), speed)

    def save(self, state: TrainState, data_state: dict[str, Any] | None, record: Record | None) -> None:
        """Save this step, with its validation where there is one."""
        with self.phases.time(SAVING):
            if distributed.leads():
                self.lock.check()
            metrics = None if record is None else {"validation/loss": record.loss}
            meta = checkpoint_meta(self.config, self.data.vocabulary, self.data.domains, data_state)
            self.checkpoints.save(int(jax.device_get(state.step)), state, meta, metrics)
        self.files.try_to_copy()

    def picture(self, state: TrainState, step: int) -> None:
        """Write a picture of reconstructed images; one that cannot be written is logged, and costs no more."""
        with self.phases.time(EVALUATION):
            rows = self.data.first_validation_rows(self.config, report.PICTURED_IMAGES)
            path = self.files.directory / "pictures" / f"reconstruction-{step}.png"
            try:
                report.write_picture(path, self.config, state.acting_params, rows)
            except OSError as error:
                logging.warning("%s was not written: %s", path, error)

    def _domain_names(self) -> list[str]:
        return [domain.name for domain in self.data.domains]


def open_run(config: Config, workdir: Path | epath.Path, phases: Phases) -> Run:
    """Check the machine, gather demonstrations, open the data, complete the config, and begin the run.

    Raises:
        ValueError, OSError, ModuleNotFoundError, DamagedCheckpointError: a user error, in one message.
    """
    check_machine(config, resumes=bool(checkpoint.steps(workdir / "checkpoints")))
    mesh = make_mesh(config.mesh)
    check_divides(config, mesh)
    print(describe(config), flush=True)
    gather = functools.partial(ensure_demonstrations, config.data.demonstrations,
                               Path(config.data.directory).expanduser())
    with phases.time(DEMONSTRATIONS):
        gathered = distributed.leader_first(gather) if config.data.demonstrations.environment else None
    with phases.time(START):
        data = open_data(config, gathered)
        distributed.check_same(data.facts(), "give all hosts the same data")
        print(data.summary(), flush=True)
        return Run(config.with_vocabulary_size(data.vocabulary.size), data, mesh, workdir, phases)


def train(run: Run, loader: Loader, log: MetricsLog) -> tuple[TrainState, Record | None]:
    """The loop, which closes what it is given (`Run.open_streams`).

    Returns:
        The last state and its validation; None if a SIGTERM or Ctrl-C ended it early.

    Raises:
        FloatingPointError: the run has diverged; nothing of that is saved.
        OSError: two saves in a row failed, or the last one; the steps saved before are whole.
        RecordError: a record of the data cannot be read. One process alone has saved the last step before it.
    """
    config, state, data_state = run.config, run.first.state, run.first.data_state
    steps = config.train.steps
    begun = step = int(jax.device_get(state.step))
    # XLA:CPU allocates a step's temporaries when it is called, not when it runs: those of three steps, if they may be
    # called ahead. And several CPU devices share the threads of their process: with two programs under way they may
    # wait for each other for ever.
    one_at_a_time = jax.default_backend() == "cpu"
    interval: list[StepMetrics] = []
    logged_at, waited, validation = time.perf_counter(), 0.0, None

    def say(record: Record) -> None:
        log.write(record)
        print_once(progress_line(record, steps))
        run.files.try_to_copy(every=COPY_EVERY_S)

    def save_last_step() -> str:
        """After a record that cannot be read: save what there is, and return what was saved, in words."""
        if distributed.count() > 1 or step == begun:  # of several processes, the others wait in the step for this one
            return "The last saved step stays"
        if interval:
            say(record := run.record(step, interval, None))
            _check_finite("loss", record.loss, step, run.workdir)
        run.save(state, data_state, None)
        run.checkpoints.wait()
        return f"Step {step} is saved"

    with (contextlib.closing(run), contextlib.closing(loader), contextlib.closing(log), StopRequest() as stop,
          run.checkpoints, jax.transfer_guard("disallow"), _ended_by_damage(save_last_step)):
        while True:
            distributed.progress(f"step {step}")
            stopped = stop.before_step(step) and step > begun
            due, validation = Due.at(step, config, begun=begun, stopped=stopped), None
            if any(dataclasses.astuple(due)):
                # Steps under way are no part of what follows; and CPU devices share threads: no two programs at a time.
                jax.block_until_ready(state)
                if step == begun + 1:
                    run.phases.first_step_ended()
            paused = time.perf_counter()
            with jax.transfer_guard("allow"):
                if due.validate and (validation := run.validate(state, lambda: stop.requested)):
                    say(validation)
                if due.act and (success := run.act(state)):
                    log.write(success)
                    print_once(success_line(success, steps))
                if due.picture:
                    run.picture(state, step)
                if due.save:
                    # The loss is from before the last update, which is in what is saved.
                    for metrics in interval[-1:]:
                        _check_finite("loss", metrics.loss, step, run.workdir)
                        _check_finite("gradient's norm", metrics.gradient_norm, step, run.workdir)
                    if validation is not None:
                        _check_finite("validation loss", validation.loss, step, run.workdir)
                    run.save(state, data_state, validation)
            if step == steps or stopped:
                break
            logged_at += time.perf_counter() - paused  # validating and saving are no part of the step's speed

            asked = time.perf_counter()
            batch, data_state = next(loader)
            waited += (took := time.perf_counter() - asked)
            run.phases.add(DATA_WAIT, took)
            state, metrics = run.train_step(state, shard_batch(batch, run.mesh))
            step += 1
            # The steps before this one are read while it computes; the first one of all has been compiled.
            if interval and (every(config.train.log_every, step - 1) or step == begun + 2 or stop.requested):
                first = len(interval) == 1 and step == begun + 2
                record = run.record(step - 1, interval, None if first else logged_at, waited)
                now = time.perf_counter()
                if first:
                    run.phases.first_step_ended()
                say(record)
                _check_finite("loss", record.loss, step - 1, run.workdir)
                interval, logged_at, waited = [], now, 0.0
            interval.append(metrics)
            if one_at_a_time:
                jax.block_until_ready(metrics)
        if interval:
            say(run.record(step, interval, logged_at, waited))
        with run.phases.time(SAVING):
            run.checkpoints.wait()
        if stop.requested:
            run.stopped_by = stop.by
    return state, validation if step == steps else None


@contextlib.contextmanager
def _ended_by_damage(save: Callable[[], str]) -> Iterator[None]:
    """End by a record that cannot be read only after `save`, which returns what is saved."""
    try:
        yield
    except RecordError as error:
        with jax.transfer_guard("allow"):
            saved = save()
        raise RecordError(f"{error}. {saved}; the same command goes on from there when the data are repaired"
                          ) from error


def print_once(line: str) -> None:
    """Print a line of progress; where standard output goes to a full disk or a closed pipe, the line is lost alone."""
    with contextlib.suppress(OSError):
        print(line, flush=True)


def _added(found: list[tuple[LossSums, LossSums]]) -> tuple[LossSums, LossSums]:
    """The sums and the weights of several batches, each added up."""
    return jax.tree.map(lambda *leaves: np.sum(leaves, axis=0), *found)


def _check_finite(name: str, value: Any, step: int, workdir: Path | epath.Path) -> None:
    """End a run that has diverged, before anything of it is saved."""
    if not math.isfinite(value):
        raise FloatingPointError(
            f"the {name} is {float(value)} at step {step}; the last checkpoint in {workdir / 'checkpoints'} is from "
            "before it: go on from there in another workdir (config.init.checkpoint), with a lower "
            "config.optimizer.learning_rate")


def finish(run: Run, validation: Record, json_path: Path | None) -> str:
    """Act in the simulator with the saved agent, and write the report, which needs no simulator.

    Returns:
        Why acting failed; empty if it did not.
    """
    levels: dict[str, Any] = {}
    failure = ""
    if run.config.closed_loop.environment:
        try:
            with run.phases.time(EVALUATION):
                levels = report.act_in_simulator(run.config, run.workdir, run.files.directory)
        except (ValueError, RuntimeError, OSError) as error:
            logging.debug("where it was found:", exc_info=True)
            failure = f"the training is done and its report written, but the closed loop failed: {error}"
    if levels:
        with contextlib.closing(MetricsLog(run.files.directory, run.config.train.steps)) as log:
            log.write(SuccessRecord(run.config.train.steps, time.time(), without_episodes(levels)))
    figures = {
        "closed_loop": levels,
        "losses": {"total": validation.loss, **validation.losses},
        "steps": run.config.train.steps,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.first.state.params)),
        "start": run.first.source,
        "config": dataclasses.asdict(run.config),
    }
    paths = [run.files.directory / "report.json", *([json_path] if json_path else [])]
    report.write_report(paths, figures, run.phases)
    print_once(f"time: {run.phases}\nmemory: {report.peak_rss_bytes() / 2**30:.2f} GiB at most")
    print_once(f"report: {run.workdir / 'report.json'}")
    return failure
