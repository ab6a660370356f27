"""Restricts the files that a data set may refer to: those in its folder, and those below allowed roots.

    name in the data -> path with symbolic links resolved -> in the folder or below an allowed root, else BadDataError

Without this check a data set could make `prepare` copy any file of the user into a new data set.

The folder itself may be a link. A snapshot in the cache of Hugging Face (`snapshots/REVISION/FILE` is a link to
`../../blobs/HASH`) may refer to the blobs of its repository. `config.allow_root` of `prepare` allows other roots, as
does, for every command, the environment variable AGENT_JAX_ALLOW_ROOT (several separated as in PATH).
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Iterable
from pathlib import Path

from agent_jax.data.bad_data import BadDataError

ALLOW_ROOT = "AGENT_JAX_ALLOW_ROOT"


@dataclasses.dataclass(frozen=True)
class Folder:
    """The folder of a data set, or of the table that lists its files, with its allowed roots."""

    path: Path
    allowed: tuple[str, ...] = ()  # config.allow_root, in addition to the environment's

    def file(self, name: str, where: str) -> Path:
        """The file of a name in the data, relative to the folder or absolute; it need not exist.

        Raises:
            BadDataError: it is outside; names the place `where` it is named, the file, and the flag that allows it.
        """
        return self.checked(self.path / name, where)

    def checked(self, file: Path, where: str) -> Path:
        """The file, if it is allowed; raises as `file`."""
        try:
            real = os.path.realpath(file)  # Path.resolve raises RuntimeError at circular links
        except ValueError as error:  # a null byte
            raise BadDataError(f"{where}: names the file {str(file)!r}, expected a path ({error})") from error
        if not any(Path(real).is_relative_to(root) for root in self._roots):
            others = f" and the allowed {', '.join(self._roots[1:])}" if self._roots[1:] else ""
            parent = os.path.dirname(real)
            raise BadDataError(f"{where}: names the file {str(file)!r}, which is {real}, outside the data set's folder "
                               f"{self._roots[0]}{others}. To read it, allow its folder or one above: "
                               f"--config.allow_root={parent} for prepare, {ALLOW_ROOT}={parent} for any command")
        return file

    def check_links(self, files: Iterable[Path], where: str) -> None:
        """Refuse files in the folder that are links to files outside; raises as `file`.

        Paths outside the folder are skipped: the user named them, or `file` has checked them.
        """
        for file in files:
            if file.is_relative_to(self.path) and ".." not in file.relative_to(self.path).parts:
                self.checked(file, where)

    @functools.cached_property
    def _roots(self) -> list[str]:
        folder = Path(os.path.realpath(self.path))
        allowed = [*self.allowed, *filter(None, os.environ.get(ALLOW_ROOT, "").split(os.pathsep))]
        return [str(folder), *_blobs(folder), *(os.path.realpath(os.path.expanduser(root)) for root in allowed)]


def check_on_disk(path: str | os.PathLike[str], flag: str) -> None:
    """Refuse a URL of a bucket, as gs://BUCKET/DIR, which pathlib turns into gs:/BUCKET/DIR.

    Raises:
        ValueError: names the `flag` and how to mount or copy the bucket.
    """
    found = re.match(r"(\w[\w+.-]+):/+(?P<rest>.*)", str(path))
    if not found:
        return
    scheme, name = found[1], f"{found[1]}://{found['rest']}"
    advice_of = {
        "gs": "mount the bucket, as with `gcsfuse --implicit-dirs BUCKET DIR`, and name the directory below DIR; or "
              f"copy it, as with `gcloud storage cp -r {name} DIR`",
        "s3": "mount the bucket, as with `mount-s3 BUCKET DIR`, and name the directory below DIR; or copy it, as with "
              f"`aws s3 cp --recursive {name} DIR`",
        "hf": "download it, as with `hf download --repo-type dataset REPOSITORY --local-dir DIR`, and name DIR",
    }
    advice = advice_of.get(scheme, "copy it to a disk, or mount it, and name its directory there")
    raise ValueError(f"{flag}: found {name!r}, expected a path in a file system; {advice}")


def _blobs(folder: Path) -> list[str]:
    """The blobs of a snapshot in the cache of Hugging Face; [] for any other folder."""
    for snapshots in (folder, *folder.parents):
        if snapshots.name == "snapshots" and re.match(r"(datasets|models|spaces)--", snapshots.parent.name):
            return [str(snapshots.parent / "blobs")]
    return []
