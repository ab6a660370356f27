"""`python -m agent_jax.data show`: a contact sheet with a strip of frames for each episode.

    episode 17, train, 42 steps: push the red block to the left
    [ frame 0 ] [ frame 6 ] [ frame 12 ] ...
      dx 0.012    dx -0.003 ...

Actions are shown after a round trip through their tokens, as the model learns them.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from agent_jax.actions import Bins, BoundSpec, Buttons, Camera, Stick
from agent_jax.actions.vocabulary import Block, Vocabulary
from agent_jax.config import DomainConfig
from agent_jax.data.images import prepare_image
from agent_jax.data.inspect.config import complete, specs_of
from agent_jax.data.store.episode import Episode
from agent_jax.data.store.store import Store, open_store

_SIDE = 160  # pixels of the longer side of a frame on the sheet
_GAP, _LINE, _FONT_SIZE = 8, 17, 13
_INK, _GREY, _PAPER = (25, 25, 25), (110, 110, 110), (250, 250, 250)
_MOST_LINES = 4  # of an action below its frame


@dataclasses.dataclass(frozen=True)
class Strip:
    """The frames of an episode on the sheet."""

    title: str
    instruction: str
    frames: list[list[Image.Image]]  # by time, then by camera
    captions: list[list[str]]  # by time: the step's number and its action, a line each


def show(path: Path, out: Path, config: DomainConfig, *, split: str, episodes: int, frames: int) -> str:
    """Write a contact sheet.

    Args:
        path: of the data set.
        out: FILE.png or FILE.html.
        config: names and meaning of the fields; empty specs are those of the data set.
        split: of the episodes; "": "train", or else the first one.
        episodes: how many, evenly spaced over the split.
        frames: how many of each, evenly spaced.

    Returns:
        A line for the terminal.

    Raises:
        FileNotFoundError, ValueError: there is no data set, no such split, or an image is damaged.
    """
    if out.suffix not in (".png", ".html"):
        raise ValueError(f"--out={out}: expected a name that ends in .png or .html")
    if episodes < 1 or frames < 1:
        raise ValueError(f"--episodes={episodes}, --frames={frames}: expected at least 1 of each")
    store = open_store(path)
    config = complete(config, store)
    name = split or ("train" if "train" in store.splits else next(iter(store.splits)))
    source = store.split(name)
    specs = specs_of(config, store)
    spec = specs.action if specs else None
    bound = BoundSpec(spec, Vocabulary.build("bytes", (Block(spec.block, spec.tokens()),))) if spec else None
    strips = [_strip(source[number], f"{name}, record {number}", config, bound, store, frames)
              for number in _spaced(len(source), episodes)]
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    if out.suffix == ".png":
        draw_sheet(strips).save(temporary, "png")
    else:
        temporary.write_text(_page(f"{store.name}, {name}", strips), encoding="utf-8")
    temporary.rename(out)
    return f"written: {out}, {len(strips)} episodes of {name!r}"


def draw_sheet(strips: list[Strip]) -> Image.Image:
    """All strips, one below the other."""
    font = ImageFont.load_default(_FONT_SIZE)
    width = max(_GAP + sum(row[0].width + _GAP for row in strip.frames) for strip in strips)
    heights = [2 * _LINE + _tall(strip) + _LINE * max(map(len, strip.captions)) + 2 * _GAP for strip in strips]
    sheet = Image.new("RGB", (width, sum(heights) + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = _GAP
    for strip, height in zip(strips, heights, strict=True):
        draw.text((_GAP, top), strip.title, _GREY, font)
        draw.text((_GAP, top + _LINE), strip.instruction, _INK, font)
        left = _GAP
        for row, words in zip(strip.frames, strip.captions, strict=True):
            below = top + 2 * _LINE
            for image in row:
                sheet.paste(image, (left, below))
                below += image.height + 2
            for line, text in enumerate(words):
                draw.text((left, below + _LINE * line), text, _GREY if not line else _INK, font)
            left += row[0].width + _GAP
        top += height
    return sheet


def _tall(strip: Strip) -> int:
    return max(sum(image.height + 2 for image in row) for row in strip.frames)


def _strip(episode: Episode, where: str, config: DomainConfig, spec: BoundSpec | None, store: Store,
           count: int) -> Strip:
    chosen = _spaced(episode.steps, count)
    images = {camera: episode.values(camera, 0, episode.steps) for camera in config.cameras}
    frames = [[small_picture(images[camera][t]) for camera in config.cameras] for t in chosen]
    actions = {key: np.asarray(episode.values(store.step_field(key).path, 0, episode.steps))
               for key in (spec.spec.fields if spec else ())}
    captions = [[f"step {t}", *_action_lines(spec, {key: values[t] for key, values in actions.items()})]
                for t in chosen]
    name = bytes(episode.value("episode_id")).decode("utf-8", "replace") if "episode_id" in store.fields else ""
    texts = dict.fromkeys(episode.texts(config.instruction))
    return Strip(f"{where}{f', {name}' if name else ''}, {episode.steps} steps", " / ".join(texts), frames, captions)


def _action_lines(bound: BoundSpec | None, values: dict[str, np.ndarray]) -> list[str]:
    """The action after a round trip through its tokens, a line for each part."""
    if bound is None:
        return []
    decoded = bound.decode(bound.encode(values))
    lines: list[str] = []
    for part in bound.spec.parts:
        value = np.atleast_1d(decoded[part.key])
        if isinstance(part, Bins):
            lines.append(f"{part.name or part.place} {value[part.index or 0]:.4g} {part.unit}".strip())
        elif isinstance(part, (Camera, Stick)):
            if np.any(value):
                lines.append(f"{part.key} {', '.join(f'{x:.3g}' for x in value)}")
        elif isinstance(part, Buttons):
            lines += [name for name, down in zip(part.names, value, strict=True) if down]
        else:
            lines.append(part.tokens[part.symbols(float(value[part.index or 0]))[0]].lower())
    if len(lines) <= _MOST_LINES:
        return lines
    return [*lines[: _MOST_LINES - 1], f"and {len(lines) - _MOST_LINES + 1} more"]


def small_picture(image: bytes | np.ndarray) -> Image.Image:
    """The image as it is drawn on a sheet."""
    picture = Image.fromarray(prepare_image(image, 0))
    scale = _SIDE / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    # Enlarge the small images of simulators without blurring them.
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR)


def _spaced(total: int, count: int) -> list[int]:
    """At most `count` of the numbers below `total`, evenly spaced, first and last included."""
    return sorted(set(np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()))


def _page(title: str, strips: list[Strip]) -> str:
    """The sheet as one self-contained HTML file."""
    parts = [f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>"
             "body{font:14px sans-serif;margin:16px;background:#fafafa;color:#191919}"
             ".strip{display:flex;gap:8px;overflow-x:auto}figure{margin:0}figcaption{font-size:12px;white-space:pre}"
             "h2{font-size:15px;margin:16px 0 4px}small{color:#6e6e6e;font-weight:normal}img{display:block}"
             f"</style><h1>{html.escape(title)}</h1>"]
    for strip in strips:
        parts.append(f"<h2>{html.escape(strip.instruction)} <small>{html.escape(strip.title)}</small></h2>"
                     "<div class=strip>")
        for row, words in zip(strip.frames, strip.captions, strict=True):
            images = "".join(f'<img alt="" src="data:image/jpeg;base64,{_jpeg(image)}">' for image in row)
            parts.append(f"<figure>{images}<figcaption>{html.escape(chr(10).join(words))}</figcaption></figure>")
        parts.append("</div>")
    return "\n".join(parts) + "\n"


def _jpeg(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=90)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
