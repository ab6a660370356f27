"""A lock file that names its holder: two runs in one workdir, or two `prepare` into one folder, would lose data.

    {"host": "node7", "pid": 4711, "started": "8512", "token": "...", "command": "...", "since": 1700000000.0, ...}

The holder shows each `BEAT_S` that it lives: by the file's time, or in a bucket, which has none to set, by its content.
Another process takes the lock over

- at once, where the holder ran on this machine and its process has ended, or its number belongs to another process now
- at once, where the last sign of life is older than `OLD_S`
- after `PATIENCE_S` without a sign of life, where the holder is on another machine, or in another container

and is refused otherwise. No lock of the system (flock) is used: over NFS it may hold on one machine only, and a bucket
has none. The file is made by a hard link, which is atomic on NFS too; in a bucket, whose last writer wins, the one that
finds itself in the file a moment later.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from absl import logging
from etils import epath

BEAT_S = 10.0
PATIENCE_S = 60.0
OLD_S = 600.0
_SETTLED_S = 2.0  # in a bucket, until another writer's file would be seen


class LockedError(FileExistsError):
    """Another process holds the lock; the message names it."""


class DirectoryLock:
    """A lock that this process takes and releases, any number of times inside each other."""

    def __init__(self, path: epath.PathLike, subject: str, advice: str):
        """Nothing is read or written yet.

        Args:
            path: of the lock file; in a directory or a bucket (gs://).
            subject: what is locked, for messages.
            advice: what to do where another process holds it, for messages.
        """
        self.path = epath.Path(path)
        self._remote = "://" in str(path)
        self._subject, self._advice = subject, advice
        self._content = {**_this_process(), "token": uuid.uuid4().hex, "command": " ".join(sys.argv)[:300]}
        self._depth = 0
        self._released = threading.Event()

    def acquire(self) -> None:
        """Take the lock; its directory is made.

        Raises:
            LockedError: another process holds it.
            OSError: the file cannot be read or written.
        """
        self._depth += 1
        if self._depth > 1:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._content |= {"since": time.time(), "alive": time.time()}
            while not self._made():
                self._remove_stale()
        except BaseException:
            self._depth = 0
            raise
        self._released = threading.Event()
        threading.Thread(target=self._beat, args=(self._released,), name="lock", daemon=True).start()

    def release(self) -> None:
        """Give the lock back, once for each time that it was taken."""
        self._depth -= 1
        if self._depth == 0:
            self._released.set()
            with contextlib.suppress(OSError):
                if self._holder() == self._content["token"]:
                    self.path.unlink()

    def check(self) -> None:
        """Refuse to go on where another process has taken the lock, as after this machine was suspended.

        Raises:
            LockedError: it has.
        """
        if self._depth and self._holder() not in ("", self._content["token"]):
            raise LockedError(f"{self._subject} was taken over by {_name(self._read() or {})} while this process gave "
                              "no sign of life; this one ends without writing more")

    def __enter__(self) -> DirectoryLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _made(self) -> bool:
        """Make the file, unless there is one; whether this process holds the lock now."""
        text = json.dumps(self._content)
        if self._remote:
            if self.path.exists():
                return False
            self.path.write_text(text)
            time.sleep(_SETTLED_S)
            return self._holder() == self._content["token"]
        own = Path(f"{self.path}.{self._content['token']}")
        try:
            own.write_text(text)
            os.link(own, self.path)
        except FileExistsError:
            return False
        except OSError as error:
            if not own.exists() or own.stat().st_size < len(text):
                raise OSError(f"{self.path}, which locks {self._subject}, cannot be written: "
                              f"{error.strerror or error}") from error
            return self._made_without_link(text)
        finally:
            own.unlink(missing_ok=True)
        return True

    def _made_without_link(self, text: str) -> bool:
        """The same on storage without hard links."""
        try:
            with open(self.path, "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return False
        return True

    def _remove_stale(self) -> None:
        """Remove the file of a process that has ended.

        Raises:
            LockedError: its process goes on.
        """
        found = self._read()
        if found is None:
            return  # its holder has just removed it
        if not self._has_ended(found):
            raise LockedError(f"{self._subject} is in use by {_name(found)}; {self._advice}")
        if not self._remote:
            self._remove_alone(found)
        elif self._read() == found:
            self.path.unlink(missing_ok=True)
        logging.warning("%s was left locked by %s, which has ended: it is taken over", self._subject, _name(found))

    def _remove_alone(self, found: dict[str, Any]) -> None:
        """Remove the file unless another process has taken the lock since; one process at a time does so.

        Between a look at the file and its removal, another could take the lock over and lose it again. A directory,
        which one process alone can make, keeps the others waiting; its maker's death leaves it for `PATIENCE_S`.
        """
        removing = Path(f"{self.path}.removing")
        try:
            removing.mkdir()
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError, OSError):
                if time.time() - removing.stat().st_mtime > PATIENCE_S:
                    removing.rmdir()
            time.sleep(0.05)
            return
        try:
            if (self._read() or {}).get("token") == found.get("token"):
                self.path.unlink(missing_ok=True)
        finally:
            removing.rmdir()

    def _has_ended(self, found: dict[str, Any]) -> bool:
        here = _this_process()
        if found.get("machine") == here["machine"]:
            return _start_time(found.get("pid")) != found.get("started")
        sign = self._sign_of_life()
        if sign and time.time() - sign[1] > OLD_S:
            return True
        print(f"{self._subject} is locked by {_name(found)}: waiting up to {PATIENCE_S:.0f} s for a sign of life",
              file=sys.stderr, flush=True)
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            time.sleep(min(1.0, BEAT_S))
            if self._sign_of_life() != sign:
                return self._read() is None  # it goes on, or has given the lock back
        return True

    def _sign_of_life(self) -> tuple[Any, float] | None:
        """What changes with each beat, and its time in seconds since the epoch; None if there is no file."""
        try:
            if self._remote:
                found = self._read()
                return None if found is None else (found.get("alive"), float(found.get("alive", 0)))
            with open(self.path, "rb") as file:  # over NFS, to open a file asks for its state anew
                changed = os.fstat(file.fileno()).st_mtime_ns
            return changed, changed / 1e9
        except FileNotFoundError:
            return None

    def _read(self) -> dict[str, Any] | None:
        """What the file holds; empty where that is no lock's; None without a file."""
        try:
            return _parsed(self.path.read_text())
        except FileNotFoundError:
            return None

    def _holder(self) -> str:
        return (self._read() or {}).get("token", "")

    def _beat(self, released: threading.Event) -> None:
        while not released.wait(BEAT_S):
            try:
                if self._holder() != self._content["token"]:
                    return  # `check` tells
                if self._remote:
                    self._content["alive"] = time.time()
                    self.path.write_text(json.dumps(self._content))
                else:
                    os.utime(self.path)
            except Exception as error:  # noqa: BLE001 - of a bucket's libraries; the next beat may come through
                logging.debug("%s: %s", self.path, error)


def _this_process() -> dict[str, Any]:
    """What tells this process from all others; `machine` is the same for those that see each other's numbers."""
    machine = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with contextlib.suppress(OSError):
            machine.append(os.readlink(path) if "/ns/" in path else Path(path).read_text().strip())
    return {"host": machine[0], "machine": " ".join(machine), "pid": os.getpid(), "started": _start_time(os.getpid())}


def _start_time(pid: Any) -> str:
    """When a process of this machine was started, in a form of the system's own; "" if there is none."""
    if not isinstance(pid, int):
        return ""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        pass
    if Path("/proc/self/stat").exists():
        return ""
    try:  # not Linux
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "alive"


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _name(found: dict[str, Any]) -> str:
    if "pid" not in found:
        return "an unknown process"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(found.get("since", 0))))
    return f"process {found['pid']} on host {found.get('host')} since {since} ({found.get('command')})"

