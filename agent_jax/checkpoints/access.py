"""Tells a read that failed (no permission, too many open files, a disk or network error) from a file that is damaged.

Only a read that succeeded and does not match is damage. A file that is missing counts as damage too: the storage has
answered. tensorstore and Orbax wrap the system's errors, or answer one with "not found"; so an error is traced to its
cause, and then the files are opened here.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator

import jax
from etils import epath

# The storage has answered: the file is not there, or is something else.
_ANSWERS = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
# As tensorstore 0.1 writes them; the file is the last one it names.
_SYSTEM_ERROR = re.compile(r"\[os_error_code='(\d+)'")
_STATUS = re.compile(r"\b(PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED)\b")
_FILE = re.compile(r"(?:Failed to \w+|Error reading(?: local file)?|Error opening): \"([^\"]+)\"")
_REMOTE = ("gcsfs", "aiohttp", "google", "requests", "urllib3", "fsspec")  # packages that raise a bucket's errors
_ADVICE = {
    errno.EACCES: "let this user read it",
    errno.EPERM: "let this user read it",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close files of other programs: this machine has too many open",
    errno.ESTALE: "mount the network file system again",
}


def read_error(error: BaseException, step_directory: epath.Path) -> OSError | None:
    """The error to raise where reading a step failed; None where the storage answered, so that the step is damaged."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno is not None and cause.errno not in _ANSWERS:
            return failed_read(step_directory, cause.errno, cause.filename)
        text = str(cause)[:20_000]
        files = _FILE.findall(text)
        if codes := [int(code) for code in _SYSTEM_ERROR.findall(text) if int(code) not in _ANSWERS]:
            return failed_read(step_directory, codes[-1], files[-1] if files else None)
        if status := _STATUS.search(text):
            return failed_read(step_directory, None, files[-1] if files else None, status.group(1))
        if type(cause).__module__.partition(".")[0] in _REMOTE and not isinstance(cause, FileNotFoundError):
            return failed_read(step_directory, None, None, " ".join(f"{type(cause).__name__}: {cause}".split())[:200])
    return _first_unreadable(step_directory)


def failed_read(step_directory: epath.Path, number: int | None, file: object = None, reason: str = "") -> OSError:
    """The error of a step that could not be read: names the file, the system's reason, and what to do.

    Args:
        step_directory: of the step.
        number: the system's error number, if it gave one.
        file: that could not be read, if known.
        reason: in place of the error number's text.
    """
    reason = reason or (os.strerror(number) if number is not None else "no reason given")
    name = f" ({errno.errorcode[number]})" if number is not None and number in errno.errorcode else ""
    advice = _ADVICE.get(number or 0, "see that the storage answers")
    return OSError(f"cannot read {os.fspath(file) if isinstance(file, str | os.PathLike) else step_directory} of "
                   f"checkpoint {step_directory}: {reason}{name}. That is not damage: nothing was renamed or removed. "
                   f"To go on, {advice} and start the same command again")


def is_system_error(error: BaseException) -> bool:
    """Whether an error of Orbax or tensorstore is the system's: a full disk, no permission, storage that is gone."""
    return any(isinstance(cause, OSError) or _SYSTEM_ERROR.search(str(cause)) or _STATUS.search(str(cause))
               for cause in _causes(error))


def check_writable(directory: epath.Path, step: int) -> None:
    """Find out whether a step's directory can be made, before Orbax begins to save it.

    Orbax 0.12 makes it in the background; where that fails, threads that wait for it hold up the end of the process
    for ten minutes.

    Raises:
        OSError: a full disk, no permission.
    """
    if "://" in str(directory) or jax.process_index():
        return
    directory.mkdir(parents=True, exist_ok=True)
    probe = directory / f"{step}.probe"
    probe.mkdir(exist_ok=True)
    probe.rmdir()


def first_cause(error: BaseException, most: int = 300) -> str:
    """The error that others were raised from, in one line of at most so many characters."""
    cause = list(_causes(error))[-1]
    text = str(cause).partition("[tensorstore_spec")[0]
    return " ".join(f"{type(cause).__name__}: {text}".split())[:most]


def is_directory(path: epath.Path) -> bool:
    """Whether there is a directory.

    Raises:
        OSError: the storage does not answer; `Path.is_dir` would answer no.
    """
    if "://" in str(path):
        return path.is_dir()
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on to the first one; of a group, each."""
    waiting, seen = [error], set()
    while waiting:
        cause = waiting.pop(0)
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        waiting += list(cause.exceptions) if isinstance(cause, BaseExceptionGroup) else []
        waiting += [one for one in (cause.__cause__, cause.__context__) if one is not None]


def _first_unreadable(step_directory: epath.Path) -> OSError | None:
    """The error of the first file of a step that cannot be opened and read now; None if all can be."""
    if "://" in str(step_directory):
        return None

    def refuse(error: OSError) -> None:
        raise error

    try:
        for folder, _, names in os.walk(step_directory, onerror=refuse):
            for name in names:
                with open(os.path.join(folder, name), "rb") as file:
                    file.read(1)
    except OSError as error:
        return None if error.errno in _ANSWERS else failed_read(step_directory, error.errno, error.filename)
    return None
