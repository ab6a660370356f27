"""The page of the documentation that an error names, as a file: it is read without a network."""

from __future__ import annotations

from pathlib import Path

PAGES = Path(__file__).parent / "docs"  # in a checkout a link to docs/, in an installed package a copy


def help_page(page: str, heading: str) -> str:
    """The end of a message: `. See PATH, "HEADING"`; "" where the package was copied without its pages.

    Args:
        page: below docs/, e.g. "guides/train.md".
        heading: of the page, as written there.
    """
    path = (PAGES / page).resolve()
    return f'. See {path}, "{heading}"' if path.is_file() else ""
