"""The error of data that cannot be read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class BadDataError(ValueError):
    """A recording cannot be read. Names the file and place in it, what was found and what was expected."""


@contextlib.contextmanager
def bad_data(suffix: str = "") -> Iterator[None]:
    """Raise the ValueError or FileNotFoundError of a reader as a BadDataError; `suffix` is added to its message."""
    try:
        yield
    except BadDataError:
        raise
    except (ValueError, FileNotFoundError) as error:
        raise BadDataError(f"{error}{suffix}") from error
