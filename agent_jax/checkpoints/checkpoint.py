"""Checkpoints: everything a run or a policy needs in one Orbax step, and what is done when one is damaged.

    workdir/checkpoints/
        1000/acting/...         the parameters to act with: averaged ones where the run keeps some
        1000/state/...          every other array of the state, by path
        1000/meta/data.json     everything else (meta.py lists it)
        2000.damaged/           set aside by `Checkpoints.restore`; not counted, never deleted

Reading (`read_meta`, `restore_parameters`) changes no file, so it is safe beside a run that is still training. Only
JSON and arrays are read: nothing in a checkpoint is executed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
from absl import logging
from etils import epath
from orbax.checkpoint import v1 as ocp

from agent_jax.checkpoints import meta as checkpoint_meta
from agent_jax.checkpoints.access import check_writable, first_cause, is_directory, is_system_error
from agent_jax.checkpoints.arrays import context, load, spans_processes
from agent_jax.checkpoints.fingerprint import flat, nested
from agent_jax.checkpoints.meta import FORMAT_VERSION, DamagedCheckpointError
from agent_jax.checkpoints.retention import Retention, metric_key, rank, set_aside
from agent_jax.help_pages import help_page
from agent_jax.runtime.distributed import check_same

__all__ = ["FORMAT_VERSION", "Checkpoints", "DamagedCheckpointError", "locate",
           "newest_undamaged", "read_meta", "restore_parameters", "steps"]

T = TypeVar("T")

BEST = "best"  # in a user's path, in place of a step

_WRITE_ERRORS = (OSError, ValueError, RuntimeError)  # of Orbax; a full disk is a ValueError of tensorstore


class Checkpoints:
    """The checkpoints of one run, which alone writes to their directory. All processes call every method together.

    A save is certain to be on disk only after `wait` or `close`; as a context manager it closes itself. A process
    killed in a save leaves the steps before it as they were; the next save removes what it left behind.
    """

    def __init__(self, directory: epath.PathLike, *, keep_latest: int, keep_best: int,
                 best_metric: str = "validation/loss"):
        """Nothing is read or written yet.

        Args:
            directory: of the steps; made by the first save.
            keep_latest: newest steps kept.
            keep_best: steps kept besides, of the best finite `best_metric`; steps saved without it do not count.
            best_metric: key of `metrics`; the lowest value is the best, of an accuracy the highest.

        Raises:
            ValueError: if nothing would be kept.
        """
        if keep_latest < 1 or keep_best < 0:
            raise ValueError(f"keep_latest={keep_latest} must be at least 1, and keep_best={keep_best} at least 0")
        self.directory = _absolute(directory)
        self._keep = {"keep_latest": keep_latest, "keep_best": keep_best, "metric": best_metric}
        self._checkpointer: ocp.training.Checkpointer | None = None
        self._retention = Retention((), **self._keep)
        self._current: int | None = None  # the step this object saved or restored last
        self._failed = False  # the last save did not reach the disk
        self._refused: Exception | None = None  # why the last save did not begin

    def save(self, step: int, state: Any, meta: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        """Save a step; returns once the arrays are copied, so that they may be donated.

        The step that was saved or restored last is not saved again. A save that failed (a full disk), here or in the
        background, is logged when the next one starts, and that one goes ahead; two in a row raise.

        Args:
            step: greater than any step in the directory.
            state: pytree of `jax.Array`s.
            meta: JSON dict, see meta.py.
            metrics: of a validation of these very parameters, or None.

        Raises:
            ValueError: if the directory holds a step not before this one, or meta a reserved key.
            OSError: if two saves in a row failed.
        """
        try:
            self.wait()
            self._failed = False
        except OSError as error:
            if self._failed:
                raise
            self._failed = True
            logging.error("%s. The run goes on with saving step %d; if that fails too, it ends", error, step)
        if step == self._current:
            logging.info("Step %d is already saved in %s.", step, self.directory)
            return
        present = self.steps()
        if present and step <= present[-1]:
            raise ValueError(f"cannot save step {step}: {self.directory} already holds step {present[-1]}. Restore it "
                             "before training on, or train in a new workdir")
        content = checkpoint_meta.sealed(meta, step, metrics, state)
        items: dict[str, dict[str, Any]] = {}
        for path, leaf in flat(state).items():
            item, place = checkpoint_meta.locate(content, path)
            items.setdefault(item, {})[place] = leaf
        checkpointables = {**{item: nested(leaves) for item, leaves in items.items()}, "meta": content}
        self._current = step
        try:
            check_writable(self.directory, step)
            checkpointer = self._opened()
            self._retention.note(content)
            checkpointer.save_checkpointables_async(step, checkpointables, force=True)
        except _WRITE_ERRORS as error:
            if not is_system_error(error):
                raise
            self._refused = error
            if jax.process_count() > 1:
                self.wait()  # the others are in the save already: end, rather than go on without them

    def restore(self, abstract_state: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """The newest undamaged step.

        Damaged steps after it are renamed to `<step>.damaged`, with the reason in the log.

        Args:
            abstract_state: the state as `jax.ShapeDtypeStruct`s with the shardings it is to have now.

        Returns:
            (step, state, meta), or None if the directory holds no step.

        Raises:
            ValueError: if the state has other paths, shapes or dtypes than the checkpoint. Files stay as they were.
            DamagedCheckpointError: if every step is damaged. Files stay as they were: whether to start afresh, which
                in the end replaces them, is for the user to say.
        """
        self.wait()
        found, damaged = _newest_undamaged(self.directory, abstract_state, subtree="")
        if found is None:
            return None
        if damaged:
            self._drop()  # it still lists the damaged steps
            set_aside(self.directory, damaged)
        state, meta = found
        self._current = meta["step"]
        return meta["step"], state, meta

    def steps(self) -> list[int]:
        """The steps on disk, oldest first, damaged ones not yet set aside included."""
        return steps(self.directory)

    def wait(self) -> None:
        """Wait for the save in progress.

        Raises:
            OSError: if it failed; once.
        """
        error, self._refused = self._refused, None
        if error is None and self._checkpointer is not None:
            try:
                self._checkpointer.wait()
            except _WRITE_ERRORS as failed:
                error = failed
        if error is not None:
            step, self._current = self._current, None
            self._drop()
            whole = self.steps()
            left = f"step {whole[-1]}, the newest one there, is whole" if whole else "no step was saved before it"
            raise OSError(f"Saving step {step} in {self.directory} failed ({first_cause(error)}); {left}") from error

    def close(self) -> None:
        """Wait, and release Orbax's threads.

        Raises:
            OSError: if the last save failed.
        """
        self.wait()
        self._drop()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except OSError as error:
            if kind is None:
                raise
            logging.error("%s", error)  # the exception on its way is the cause to show

    def _opened(self) -> ocp.training.Checkpointer:
        """Orbax's Checkpointer, made anew after every failure: it keeps stale errors and lists of steps."""
        if self._checkpointer is None:
            self._retention = Retention(_readable_metas(self.directory), **self._keep)
            self._checkpointer = ocp.training.Checkpointer(
                self.directory, context=context(), preservation_policy=self._retention, cleanup_tmp_directories=True)
        return self._checkpointer

    def _drop(self) -> None:
        checkpointer, self._checkpointer = self._checkpointer, None
        if checkpointer is not None:
            try:
                checkpointer.close()
            except _WRITE_ERRORS as error:
                logging.info("Orbax repeats on closing: %s", error)  # `wait` has raised it already


def steps(directory: epath.PathLike) -> list[int]:
    """The finished steps of a checkpoint directory, oldest first, without what is half written or set aside.

    Raises:
        OSError: if the storage does not answer; a directory that is missing has no steps.
    """
    directory = _absolute(directory)
    if not is_directory(directory):
        return []
    found = ocp.path.step.standard_name_format().find_all(directory)
    return sorted(metadata.step for metadata in found if is_directory(metadata.path))


def locate(path: epath.PathLike) -> tuple[epath.Path, int | None]:
    """The checkpoint directory that a user's path means: a workdir, its checkpoints directory, or one step in it.

    `best` in place of a step is the one with the best `config.checkpoint.best_metric` of its run.

    Returns:
        (checkpoint directory, step), the step None if the path does not name one.

    Raises:
        FileNotFoundError: if there is no checkpoint, or for `best` none that was saved with a validation.
    """
    path = _absolute(path)
    for directory in (path / "checkpoints", path):
        if steps(directory):
            return directory, None
    if path.name.isdecimal() and int(path.name) in steps(path.parent):
        return path.parent, int(path.name)
    if path.name == BEST:
        for directory in (path.parent / "checkpoints", path.parent):
            if steps(directory):
                return directory, _best_step(directory)
    raise FileNotFoundError(f"no checkpoint in {path}: expected a workdir with checkpoints/<step>, a directory with "
                            "<step> directories, or one of those")


def _best_step(directory: epath.Path) -> int:
    metas = list(_readable_metas(directory))
    checkpoint_config = metas[0]["config"].get("checkpoint", {}) if metas else {}
    metric = metric_key(checkpoint_config.get("best_metric", "loss"))
    found = rank(metas, metric)
    if not found:
        raise FileNotFoundError(f"{directory / BEST}: no step there was saved with a finite {metric}; name a step, or "
                                "make config.checkpoint.every a multiple of config.train.validate_every")
    return found[0]


def read_meta(directory: epath.PathLike, step: int | None = None) -> dict[str, Any]:
    """The meta dict of a step, without its arrays; by default of the newest step whose meta is undamaged.

    Raises:
        FileNotFoundError: if there is no such step, or none at all.
        DamagedCheckpointError: if the step's meta is damaged, or that of every step.
        ValueError: if a newer version of this package wrote it.
    """
    directory = _absolute(directory)
    if step is not None:
        return checkpoint_meta.read(directory / str(step))
    for meta in _readable_metas(directory):
        return meta
    if steps(directory):
        raise _all_damaged(directory, "the log names the reasons")
    raise FileNotFoundError(f"no checkpoint in {directory}")


def restore_parameters(directory: epath.PathLike, abstract: Any, *, step: int | None = None,
                       subtree: str = "params") -> tuple[Any, dict[str, Any]]:
    """One subtree of the state: the parameters, for acting, export or a new run. Changes no file.

    Args:
        directory: of the steps.
        abstract: the subtree as `jax.ShapeDtypeStruct`s; without shardings it goes to the first local device.
        step: by default the newest undamaged one.
        subtree: its path in the state, such as "params"; "acting": the parameters to act with, wherever they are.

    Returns:
        (the subtree as `jax.Array`s, meta).

    Raises:
        FileNotFoundError: if there is no such step, or none at all.
        DamagedCheckpointError: if the step is damaged, or every step.
        ValueError: if the subtree has other paths, shapes or dtypes than the checkpoint.
    """
    directory = _absolute(directory)
    if step is not None:
        return load(directory / str(step), abstract, subtree)
    found, _ = _newest_undamaged(directory, abstract, subtree)
    if found is None:
        raise FileNotFoundError(f"no checkpoint in {directory}")
    return found


def newest_undamaged(directory: epath.PathLike, read: Callable[[int], T]) -> tuple[T, dict[int, str]]:
    """What `read` returns of the newest step that it does not find damaged.

    Returns:
        (what it returned, {damaged newer step: reason}).

    Raises:
        FileNotFoundError: if there is no step.
        DamagedCheckpointError: if every step is damaged.
    """
    directory, reasons = _absolute(directory), {}
    for step in reversed(steps(directory)):
        try:
            return read(step), reasons
        except DamagedCheckpointError as error:
            reasons[step] = str(error)
    if reasons:
        raise _all_damaged(directory, "\n  ".join(reasons.values()))
    raise FileNotFoundError(f"no checkpoint in {directory}")


def _newest_undamaged(directory: epath.Path, abstract: Any,
                      subtree: str) -> tuple[tuple[Any, dict[str, Any]] | None, list[int]]:
    """((tree, meta), the damaged steps after it); (None, []) if there is no step at all."""
    found = steps(directory)
    if spans_processes(abstract):
        check_same({f"checkpoints in {directory}": found}, "expected storage that all hosts share, so that they see "
                   "the same checkpoints")
    if not found:
        return None, []
    tree, passed_over = newest_undamaged(directory, lambda step: load(directory / str(step), abstract, subtree))
    for reason in passed_over.values():
        logging.warning("%s", reason)
    return tree, list(passed_over)


def _readable_metas(directory: epath.Path) -> Iterator[dict[str, Any]]:
    """The undamaged meta dicts, newest first; damaged ones are logged."""
    for step in reversed(steps(directory)):
        try:
            yield checkpoint_meta.read(directory / str(step))
        except (DamagedCheckpointError, FileNotFoundError) as error:  # a run beside us may have removed an old step
            logging.warning("%s", error)


def _all_damaged(directory: epath.Path, reasons: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(f"every checkpoint in {directory} is damaged; all were left as they are. To start "
                                  f"afresh, move the directory away{help_page('guides/checkpoints.md', 'Damage')}\n"
                                  f"  {reasons}")


def _absolute(directory: epath.PathLike) -> epath.Path:
    path = epath.Path(directory)
    return path if "://" in str(path) else path.expanduser().absolute()  # a bucket's path is absolute, and stays so
