"""A step that cannot be read just now is an error that names the file; it is not damage, and no file is touched."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from agent_jax.checkpoints.checkpoint import Checkpoints, locate, read_meta, restore_parameters, steps

# Orbax 0.12 abandons coroutines, and with uvloop their event loop, when it fails to read a file.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]

STATE = {"params": {"w": jnp.arange(4096, dtype=jnp.float32)}}
ABSTRACT = jax.eval_shape(lambda: STATE)


@pytest.fixture
def directory() -> Iterator[Path]:
    """Steps 1 and 2, where another user could read them too: pytest's own directories are for one user."""
    with tempfile.TemporaryDirectory() as base:
        Path(base).chmod(0o755)
        with Checkpoints(Path(base) / "checkpoints", keep_latest=5, keep_best=0) as checkpoints:
            for step in (1, 2):
                checkpoints.save(step, jax.tree.map(lambda leaf, step=step: leaf + step, STATE), {"config": {}})
        yield Path(base) / "checkpoints"


def array_file(step: Path) -> Path:
    return max((step / "acting").rglob("d/*"), key=lambda path: path.stat().st_size)


@contextlib.contextmanager
def forbidden(path: Path) -> Iterator[Path]:
    """Nobody may open the file: not root either, who is another user for that long."""
    mode, user = path.stat().st_mode, os.geteuid()
    path.chmod(0)
    if user == 0:
        os.seteuid(65534)
    try:
        yield path
    finally:
        os.seteuid(user)
        path.chmod(mode)


@contextlib.contextmanager
def circular(path: Path) -> Iterator[Path]:
    """The file is a link to itself: the system refuses to open it (ELOOP), as it does with EIO or ESTALE."""
    aside = path.rename(path.parent.parent / "aside")
    path.symlink_to(path)
    try:
        yield path
    finally:
        path.unlink()
        aside.rename(path)


@contextlib.contextmanager
def too_many_open_files(path: Path) -> Iterator[Path]:
    """Eight more files may be opened: enough to begin with, too few for all arrays."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/dev/fd")))  # other tests of this process may have left many open
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(highest + 64, soft), hard))
    held = []
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(8):
            os.close(held.pop())
        yield path
    finally:
        for opened in held:
            os.close(opened)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(("failing", "place", "code"), [
    (forbidden, array_file, "EACCES"),
    (forbidden, lambda step: step / "acting", "EACCES"),
    (forbidden, lambda step: step / "acting" / "_METADATA", "EACCES"),
    (forbidden, lambda step: step / "acting" / "manifest.ocdbt", "EACCES"),
    (forbidden, lambda step: step / "meta" / "data.json", "EACCES"),
    (circular, array_file, "ELOOP"),
    (circular, lambda step: step / "acting" / "_METADATA", "ELOOP"),
    (too_many_open_files, lambda step: step, "EMFILE"),
], ids=["arrays", "folder", "metadata", "manifest", "meta", "arrays in a circle", "metadata in a circle", "open files"])
def test_a_newest_step_that_cannot_be_read_is_named_and_stays(directory: Path, failing: Callable,
                                                              place: Callable[[Path], Path], code: str):
    checkpoints = Checkpoints(directory, keep_latest=5, keep_best=0)
    names = sorted(str(path) for path in directory.rglob("*"))
    # All that is raised is the system's error: to have named a step as damaged would have set it aside.
    with failing(place(directory / "2")) as path, pytest.raises(OSError, match=f"cannot read .*{code}") as refusal:
        checkpoints.restore(ABSTRACT)
    assert str(path) in str(refusal.value)
    assert str(directory / "2") in str(refusal.value)
    assert sorted(str(path) for path in directory.rglob("*")) == names
    found = checkpoints.restore(ABSTRACT)
    assert found is not None
    assert found[0] == 2


def test_parameters_and_meta_to_act_with_do_not_fall_back_from_what_cannot_be_read(directory: Path):
    for file, read in ((array_file(directory / "2"), lambda: restore_parameters(directory, ABSTRACT["params"])),
                       (directory / "2" / "meta" / "data.json", lambda: read_meta(directory))):
        with forbidden(file), pytest.raises(OSError, match="cannot read .*EACCES"):
            read()


def test_a_directory_that_cannot_be_reached_is_not_taken_for_one_without_steps(directory: Path):
    for folder in (directory, directory.parent):
        with forbidden(folder):
            for look in (steps, locate, read_meta):
                with pytest.raises(PermissionError):
                    look(directory)
    shutil.rmtree(directory)
    assert steps(directory) == []


def test_a_save_that_cannot_begin_is_told_by_the_next_one_and_two_in_a_row_raise(directory: Path, caplog):
    names = sorted(path.name for path in directory.iterdir())
    checkpoints = Checkpoints(directory, keep_latest=5, keep_best=0)
    mode, user = directory.stat().st_mode, os.geteuid()
    directory.chmod(0o555)
    if user == 0:
        os.seteuid(65534)
    try:
        checkpoints.save(3, STATE, {"config": {}})
        checkpoints.save(4, STATE, {"config": {}})
        assert f"Saving step 3 in {directory} failed" in caplog.text
        assert "step 2, the newest one there, is whole" in caplog.text
        with pytest.raises(OSError, match="Saving step 4 .*Permission denied"):
            checkpoints.save(5, STATE, {"config": {}})
    finally:
        os.seteuid(user)
        directory.chmod(mode)
    assert sorted(path.name for path in directory.iterdir()) == names
    with checkpoints:
        checkpoints.save(6, STATE, {"config": {}})
    assert steps(directory) == [1, 2, 6]
