"""What a detector reports, and its contact sheet."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from agent_jax.data.inspect.contact_sheet import Strip, draw_sheet, small_picture
from agent_jax.doctor.episodes import DataSet, EpisodeRecord
from agent_jax.doctor.readers import UNREADABLE, Reader
from agent_jax.help_pages import help_page

_STRIPS = 6  # episodes on a sheet
_FRAMES = 8  # of an episode
_BEFORE = 2  # frames of a strip before the step that was found
_NUMBERS = 4  # actions below a frame
_TITLE = 150  # characters of an instruction on a sheet


@dataclasses.dataclass(frozen=True)
class Place:
    """A step of a record."""

    split: str
    number: int
    step: int = 0

    @property
    def name(self) -> str:
        """For messages: "train/17, step 3"."""
        return f"{self.split}/{self.number}, step {self.step}"


def place_of(episode: EpisodeRecord, step: int | np.integer = 0) -> Place:
    """The place of a step of an episode."""
    return Place(episode.split, episode.number, int(step))


@dataclasses.dataclass(frozen=True)
class Finding:
    """One fault of the data."""

    detector: str  # its name, and its heading in docs/guides/doctor.md
    level: Literal["wrong", "note"]  # note: a fact that is often intended
    text: str  # what was found, and what was expected
    advice: str
    places: Sequence[Place] = ()  # where, the worst first

    def lines(self, picture: str = "") -> list[str]:
        """For the terminal."""
        names = list(dict.fromkeys(f"{place.split}/{place.number}" for place in self.places))
        listed = ", ".join(names[:8]) + (f" and {len(names) - 8:,} more" if len(names) > 8 else "")
        return [f"{self.level}: {self.detector}: {self.text}",
                *([f"       episodes {listed}"] if names else []),
                *([f"       picture {picture}"] if picture else []),
                f"       {self.advice}{help_page('guides/doctor.md', self.detector)}"]

    def to_json(self, picture: str = "") -> dict[str, Any]:
        """With every episode."""
        return {**dataclasses.asdict(self), "places": [dataclasses.asdict(place) for place in self.places],
                "episodes": sorted({f"{place.split}/{place.number}" for place in self.places}), "picture": picture}


def draw(finding: Finding, reader: Reader, data: DataSet, out: Path) -> str:
    """Write the contact sheet of a finding; returns its path, or "" if it has no episode that can be read."""
    places = list({(place.split, place.number): place for place in reversed(finding.places)}.values())[::-1]
    strips = []
    for place in places[:_STRIPS]:
        try:
            strips.append(_strip(place, reader, data))
        except (*UNREADABLE, StopIteration):
            continue
    strips = [strip for strip in strips if strip.frames and strip.frames[0]]
    if not strips:
        return ""
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{finding.detector}.png"
    number = 1
    while file.exists():  # of another finding of this detector; the folder was emptied of old ones
        number += 1
        file = out / f"{finding.detector}-{number}.png"
    draw_sheet(strips).save(file, "png")
    return str(file)


def _strip(place: Place, reader: Reader, data: DataSet) -> Strip:
    raw = reader.read(place.split, place.number)
    first = max(0, place.step - _BEFORE)
    frames, captions = [], []
    for t, step in enumerate(raw.steps):
        if t < first:
            continue
        if t == first + _FRAMES:
            break
        frames.append([small_picture(image) for image in step.images.values()])
        numbers = [f"{column.name[-12:]} {value:.3g}" for column, value in zip(data.actions, step.action, strict=True)]
        captions.append([f"step {t}{' *' if t == place.step else ''}", *numbers[:_NUMBERS]])
    return Strip(f"{place.name} (*)", raw.instruction[:_TITLE], frames, captions)
