"""Which files a data set may name: those of its own folder, and those below a folder that the user allows.

    a name in the data -> the file it leads to, symbolic links resolved -> in the folder, or below an allowed root?
                                                                           no: BadDataError, which names the flag

Otherwise a data set from elsewhere could have any file of the user's read, and copied into a new data set.

The folder itself may be reached by links. A snapshot in the cache of Hugging Face (`snapshots/REVISION/FILE` is a link
to `../../blobs/HASH`) may lead to the blobs of its own repository. Other roots are allowed by `config.allow_root` of
`prepare`, and for every command by the environment variable AGENT_JAX_ALLOW_ROOT (several separated as in PATH).
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Iterable
from pathlib import Path

from agent_jax.data.prepare.sources.source import BadDataError

ALLOW_ROOT = "AGENT_JAX_ALLOW_ROOT"


@dataclasses.dataclass(frozen=True)
class Folder:
    """The folder of a data set, or of the table that names its files, and what it may name."""

    path: Path
    allowed: tuple[str, ...] = ()  # config.allow_root; the environment's are allowed as well

    def file(self, name: str, where: str) -> Path:
        """The file that data name, by a path relative to the folder or an absolute one; it need not be there.

        Raises:
            BadDataError: it lies outside; names `where` the name stands, the file, and the flag that allows it.
        """
        return self.checked(self.path / name, where)

    def checked(self, file: Path, where: str) -> Path:
        """The file, if it lies inside; raises as `file`."""
        try:
            real = os.path.realpath(file)  # Path.resolve raises RuntimeError at links that lead in a circle
        except ValueError as error:  # a null byte
            raise BadDataError(f"{where}: names the file {str(file)!r}, expected a path ({error})") from error
        if not any(Path(real).is_relative_to(root) for root in self._roots):
            others = f" and the allowed {', '.join(self._roots[1:])}" if self._roots[1:] else ""
            parent = os.path.dirname(real)
            raise BadDataError(f"{where}: names the file {str(file)!r}, which is {real}, outside the data set's folder "
                               f"{self._roots[0]}{others}. If it is to be read, allow the folder it lies in, or one "
                               f"above: --config.allow_root={parent} of prepare, {ALLOW_ROOT}={parent} of any command")
        return file

    def check_links(self, files: Iterable[Path], where: str) -> None:
        """Refuse files within the folder that are links to others outside; raises as `file`.

        Files that lie elsewhere by their name are passed over: the user has given it, or `file` has checked it.
        """
        for file in files:
            if file.is_relative_to(self.path) and ".." not in file.relative_to(self.path).parts:
                self.checked(file, where)

    @functools.cached_property
    def _roots(self) -> list[str]:
        own = Path(os.path.realpath(self.path))
        given = [*self.allowed, *filter(None, os.environ.get(ALLOW_ROOT, "").split(os.pathsep))]
        return [str(own), *_blobs(own), *(os.path.realpath(os.path.expanduser(root)) for root in given)]


def check_on_disk(path: str | os.PathLike[str], flag: str) -> None:
    """Refuse what is in a bucket, as gs://BUCKET/DIR; pathlib makes gs:/BUCKET/DIR of it.

    Raises:
        ValueError: says how to get at it; names the `flag`.
    """
    found = re.match(r"(\w[\w+.-]+):/+(?P<rest>.*)", str(path))
    if not found:
        return
    scheme, name = found[1], f"{found[1]}://{found['rest']}"
    mounted = {
        "gs": "mount the bucket, as with `gcsfuse --implicit-dirs BUCKET DIR`, and name the directory below DIR; or "
              f"copy it, as with `gcloud storage cp -r {name} DIR`",
        "s3": "mount the bucket, as with `mount-s3 BUCKET DIR`, and name the directory below DIR; or copy it, as with "
              f"`aws s3 cp --recursive {name} DIR`",
        "hf": "download it, as with `hf download --repo-type dataset REPOSITORY --local-dir DIR`, and name DIR",
    }
    advice = mounted.get(scheme, "copy it to a disk, or mount it, and name its directory there")
    raise ValueError(f"{flag}: found {name!r}, but data sets are read from and written to file systems only; {advice}")


def _blobs(folder: Path) -> list[str]:
    """Where the files of a snapshot in the cache of Hugging Face lie: [] for a folder that is in none."""
    for snapshots in (folder, *folder.parents):
        if snapshots.name == "snapshots" and re.match(r"(datasets|models|spaces)--", snapshots.parent.name):
            return [str(snapshots.parent / "blobs")]
    return []
