"""What a run writes beside its checkpoints: in a bucket, a copy of what is written locally.

    --workdir gs://BUCKET/DIR
        checkpoints/   compiled/                       straight there: Orbax and JAX write to buckets
        metrics.jsonl  tensorboard/  pictures/  ...    in a local directory; copied after a save, and every five minutes

A bucket has no files to append to. In a workdir of a file system everything is written in place, and nothing is copied.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from pathlib import Path

from absl import logging
from etils import epath

from agent_jax.runtime.extras import install
from agent_jax.train.metrics import METRICS_FILE

LOCK_FILE = ".lock"  # in the workdir, while a run writes to it
COPY_EVERY_S = 300.0  # TensorBoard's file is copied whole each time


def workdir_path(given: str) -> epath.Path:
    """The workdir that a user names.

    Raises:
        ValueError: in storage that cannot be written to, with what to do.
    """
    scheme, separator, _ = given.partition("://")
    if not separator:
        return epath.Path(given).expanduser()
    mount = "or mount the bucket (launch/mount_bucket.sh) and name the directory below the mount"
    if scheme != "gs":
        raise ValueError(f"--workdir={given}: expected a directory or gs://BUCKET/DIR; take one of them, {mount}")
    if importlib.util.find_spec("gcsfs") is None:
        raise ValueError(f"--workdir={given}: gcsfs, which reads buckets, is not installed: {install('gcs')}; {mount}")
    return epath.Path(given)


class RunFiles:
    """The small files of a run, in `directory`."""

    def __init__(self, workdir: epath.Path, *, silent: bool = False) -> None:
        """Make a local directory where the workdir is a bucket, with the metrics that are there already.

        Args:
            workdir: of the run.
            silent: of a process that writes no such files.

        Raises:
            ValueError: the bucket cannot be written to.
        """
        self._workdir, self._remote = workdir, "://" in str(workdir) and not silent
        self._copied: dict[Path, tuple[int, int]] = {}  # time and size of what has been copied
        self._at = time.monotonic()
        if not self._remote:
            self.directory = Path(workdir)
            return
        self._local = tempfile.TemporaryDirectory(prefix="agent_jax-", ignore_cleanup_errors=True)
        self.directory = Path(self._local.name)
        probe = workdir / ".agent_jax-may-write"
        try:
            probe.write_text("")
            probe.unlink()
            if (workdir / METRICS_FILE).exists():
                (self.directory / METRICS_FILE).write_bytes((workdir / METRICS_FILE).read_bytes())
        except Exception as error:  # of gcsfs, aiohttp and google.auth, which have no class in common
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"--workdir={workdir}: cannot be written to ({type(error).__name__}: {reason}); see that "
                             "the bucket exists and that this machine's credentials may write to it: gcloud auth "
                             "application-default login, or the service account of the machine") from error

    def copy(self) -> None:
        """Copy what has changed to the bucket."""
        if not self._remote:
            return
        self._at = time.monotonic()
        for path in sorted(self.directory.rglob("*")):
            stamp = path.stat().st_mtime_ns, path.stat().st_size
            if path.is_file() and self._copied.get(path) != stamp:
                (self._workdir / path.relative_to(self.directory).as_posix()).write_bytes(path.read_bytes())
                self._copied[path] = stamp

    def try_to_copy(self, *, every: float = 0.0) -> None:
        """The same, if it is `every` seconds since the last time; a failure is logged, and mended by the next copy."""
        if time.monotonic() - self._at < every:
            return
        try:
            self.copy()
        except Exception as error:  # noqa: BLE001 - as above; no reason to end the training
            logging.warning("The files of this run could not be copied to %s: %s", self._workdir, error)
