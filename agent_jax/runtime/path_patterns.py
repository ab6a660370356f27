"""Regular expressions that choose parameters by path: frozen ones, learning-rate factors, low-rank adapters."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence


def compile_patterns(patterns: Sequence[str], paths: Sequence[str], field: str, more: str = ""
                     ) -> list[re.Pattern[str]]:
    """The compiled patterns, each of which matches a path from end to end.

    Args:
        patterns: regular expressions, e.g. `"vision/.*"`.
        paths: of the parameters to choose from.
        field: of the config, for messages.
        more: the end of a message.

    Raises:
        ValueError: a pattern that is no regular expression or matches no path (with the nearest ones).
    """
    compiled = []
    for i, pattern in enumerate(patterns):
        place = f"{field}[{i}]={pattern!r}"
        try:
            compiled.append(re.compile(pattern))
        except re.error as error:
            raise ValueError(f"{place} is not a regular expression: {error}") from error
        if not any(compiled[-1].fullmatch(path) for path in paths):
            known = {"/".join(names[:depth]) for names in (path.split("/") for path in paths) for depth in range(1, 9)}
            near = difflib.get_close_matches(pattern, sorted(known), n=3, cutoff=0.3)
            near = near or sorted({path.split("/")[0] for path in paths})
            raise ValueError(f"{place} matches no parameter path from end to end; near it: {', '.join(near)} "
                             f"(a whole part is chosen by 'part/.*'){more}")
    return compiled
