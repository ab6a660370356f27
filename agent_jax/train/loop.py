"""The training loop.

run.py opens mesh, data and start (restart.py has the order of what a run may start from), then the loop: validate if
due, act in the simulator if due, save if due, step, log the step before; in the end save, act, report. Of several
processes (runtime/distributed.py) all take every step, and process 0 alone prints, logs and acts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from absl import logging
from etils import epath

from agent_jax.config import Config
from agent_jax.data.pipeline.loader import Loader
from agent_jax.data.store.episode import RecordError
from agent_jax.evaluate.closed_loop import Report, without_episodes
from agent_jax.evaluate.in_training import acting_domains, by_domain
from agent_jax.evaluate.offline import DomainScores, format_scores
from agent_jax.runtime import distributed
from agent_jax.runtime.preemption import StopRequest
from agent_jax.runtime.progress_bar import ProgressBar
from agent_jax.runtime.sharding import shard_batch
from agent_jax.train import report
from agent_jax.train.metrics import MetricsLog, Record, SuccessRecord, progress_line, shown_figures, success_line
from agent_jax.train.phases import DATA_WAIT, EVALUATION, SAVING
from agent_jax.train.run import Run
from agent_jax.train.run_files import COPY_EVERY_S
from agent_jax.train.state import TrainState
from agent_jax.train.step import StepMetrics


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
    def at(cls, step: int, config: Config, *, begun: int, stopped: bool, ended: bool = False) -> Due:
        """What is due after `step` updates.

        Args:
            step: updates done.
            config: how often each is due; all but acting is due at the end, too, where acting follows the training.
            begun: step that this process started at: nothing is due at it, unless it is the last.
            stopped: a stop was requested: save, and do nothing that takes long.
            ended: early stopping ends the run here.
        """
        last, moved = ended or step == config.train.steps, step > begun
        return cls(
            validate=last or (moved and not stopped and every(config.train.validate_every, step)),
            act=moved and not stopped and not last and every(config.closed_loop.every, step),
            picture=last or (moved and every(config.train.picture_every, step)),
            save=last or stopped or (moved and every(config.checkpoint.every, step)),
        )


def train(run: Run, loader: Loader, log: MetricsLog) -> tuple[TrainState, Record | None]:
    """The loop, which closes what it is given (`Run.open_streams`).

    Returns:
        The last state and its validation; None if a SIGTERM or Ctrl-C ended it.

    Raises:
        FloatingPointError: the run has diverged; nothing of that is saved.
        MetricError: `config.train.patience` is set, and the validation has no value of `config.checkpoint.best_metric`.
        OSError: two saves in a row failed, or the last one; the steps saved before are whole.
        RecordError: a record of the data cannot be read. One process alone has saved the last step before it.
    """
    config, state, data_state = run.config, run.first.state, run.first.data_state
    steps = config.train.steps
    early = run.early_stopping
    begun = step = int(jax.device_get(state.step))
    # XLA:CPU allocates a step's temporaries when it is called, not when it runs: those of three steps, if they may be
    # called ahead. And several CPU devices share the threads of their process: with two programs under way they may
    # wait for each other for ever.
    one_at_a_time = jax.default_backend() == "cpu"
    interval: list[StepMetrics] = []
    logged_at, waited, validation = time.perf_counter(), 0.0, None

    def say(record: Record, *, line: bool = True) -> None:
        log.write(record)
        if line or not progress.shown:
            print_once(progress_line(record, steps))
        else:
            progress.add(0, ", ".join(shown_figures(record)))
        run.files.try_to_copy(every=COPY_EVERY_S)

    def count_validation(due: Due, validation: Record) -> Due:
        """What is due after a validation: a new best step is saved, and the run may end."""
        if config.train.patience:
            _check_finite("validation loss", validation.loss, step, run.workdir)
        better = early.after(validation)
        if early.ended:
            due = Due.at(step, config, begun=begun, stopped=False, ended=True)
        return dataclasses.replace(due, save=due.save or better)

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

    with (ProgressBar("training", steps) as progress, contextlib.closing(run), contextlib.closing(loader),
          contextlib.closing(log), StopRequest() as stop, run.checkpoints, jax.transfer_guard("disallow"),
          _ended_by_damage(save_last_step)):
        progress.skip(begun)
        while True:
            distributed.progress(f"step {step}")
            stopped = stop.before_step(step) and step > begun
            due, validation = Due.at(step, config, begun=begun, stopped=stopped, ended=early.ended), None
            if any(dataclasses.astuple(due)):
                # Steps under way are no part of what follows; and CPU devices share threads: no two programs at a time.
                jax.block_until_ready(state)
                if step == begun + 1:
                    run.phases.first_step_ended()
            paused = time.perf_counter()
            with jax.transfer_guard("allow"):
                if due.validate and (validation := run.validate(state, lambda: stop.requested)):
                    say(validation)
                    if step > begun:
                        due = count_validation(due, validation)
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
                if step > begun and distributed.leads() and every(config.train.report_every, step):
                    with run.phases.time(EVALUATION):
                        report.write_page(run.files.directory, run.workdir)
            if step == steps or stopped or early.ended:
                break
            logged_at += time.perf_counter() - paused  # validating and saving are no part of the step's speed

            asked = time.perf_counter()
            batch, data_state = next(loader)
            waited += (took := time.perf_counter() - asked)
            run.phases.add(DATA_WAIT, took)
            state, metrics = run.train_step(state, shard_batch(batch, run.mesh))
            step += 1
            (progress.add if step > begun + 1 else progress.skip)(1)  # the first one is compiled
            # The steps before this one are read while it computes; the first one of all has been compiled.
            if interval and (every(config.train.log_every, step - 1) or step == begun + 2 or stop.requested):
                first = len(interval) == 1 and step == begun + 2
                record = run.record(step - 1, interval, None if first else logged_at, waited)
                now = time.perf_counter()
                if first:
                    run.phases.first_step_ended()
                say(record, line=False)
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
    if early.ended:
        print_once(f"early stopping after step {step:,}: {early}")
    return state, validation if step == steps or early.ended else None


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


def _check_finite(name: str, value: Any, step: int, workdir: Path | epath.Path) -> None:
    """End a run that has diverged, before anything of it is saved."""
    if not math.isfinite(value):
        raise FloatingPointError(
            f"the {name} is {float(value)} at step {step}; the last checkpoint in {workdir / 'checkpoints'} is from "
            "before it: go on from there in another workdir (config.init.checkpoint), with a lower "
            "config.optimizer.learning_rate")


def finish(run: Run, validation: Record, json_path: Path | None) -> str:
    """Act in the simulators with the saved agent, score held-out data, and write the report, which needs neither.

    With `config.train.patience` the agent of the best step acts.

    Returns:
        Why acting or scoring failed; empty if neither did.
    """
    reports: dict[str, Report] = {}
    failures, step = [], run.early_stopping.step or validation.step
    for acting in acting_domains(run.config):
        try:
            with run.phases.time(EVALUATION):
                reports[acting.name] = report.act_in_simulator(run.config, acting, run.workdir, run.files.directory,
                                                               step)
        except (ValueError, RuntimeError, OSError) as error:
            logging.debug("where it was found:", exc_info=True)
            name = f" of domain {acting.name!r}" if acting.name else ""
            failures.append(f"the closed loop{name} failed: {error}")
    scores: list[DomainScores] = []
    try:
        with run.phases.time(EVALUATION):
            scores = report.score_held_out(run.config, run.workdir, step)
    except (ValueError, RuntimeError, OSError) as error:
        logging.debug("where it was found:", exc_info=True)
        failures.append(f"scoring the held-out data failed: {error}")
    if reports:
        success = by_domain({name: without_episodes(one) for name, one in reports.items()})
        with contextlib.closing(MetricsLog(run.files.directory, validation.step, wandb=run.wandb)) as log:
            log.write(SuccessRecord(step, time.time(), success))
    figures = {
        "closed_loop": by_domain(reports),
        **({"evaluation": {one.domain: dataclasses.asdict(one) for one in scores}} if scores else {}),
        "losses": {"total": validation.loss, **validation.losses},
        "steps": validation.step,
        **run.early_stopping.to_meta(),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.first.state.params)),
        "start": run.first.source,
        "data": run.data.summary().splitlines(),
        "config": dataclasses.asdict(run.config),
    }
    paths = [run.files.directory / "report.json", *([json_path] if json_path else [])]
    report.write_report(paths, figures, run.phases)
    page = report.write_page(run.files.directory, run.workdir)
    if scores:
        print_once(format_scores(scores))
    print_once(f"time: {run.phases}\nmemory: {report.peak_rss_bytes() / 2**30:.2f} GiB at most")
    print_once(f"report: {run.workdir / 'report.json'}{', report.html' if page else ''}")
    return f"the training is done and its report written, but {'; '.join(failures)}" if failures else ""
