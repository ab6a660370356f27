"""Videos of rollouts: the instruction, the agent's image, and the decoded action below it.

    go to the red ball
    [ enlarged image ]      green or red border around the last image
    step 3 of 5: forward

The file is an animated GIF, or an MP4 if PyAV is installed. Its comment is the episode without its images, as JSON.
"""

from __future__ import annotations

import dataclasses
import fractions
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from agent_jax.evaluate.outcomes import RolloutRecording
from agent_jax.runtime.extras import install

_SIDE = 336  # smallest side of the enlarged image, in pixels
_MARGIN, _FONT_SIZE, _LINE = 8, 17, 22
_INK, _PALE, _PAPER = (25, 25, 25), (120, 120, 120), (250, 250, 250)
_GOOD, _BAD = (20, 140, 60), (190, 40, 40)
_LAST_MS = 2000

Format = Literal["gif", "mp4"]


def default_format() -> Format:
    """MP4, a tenth of the size, if PyAV is installed; else GIF."""
    return "mp4" if importlib.util.find_spec("av") else "gif"


def check_format(kind: Format) -> None:
    """Check that a format can be written here.

    Raises:
        ModuleNotFoundError: an MP4, and PyAV is not installed.
    """
    if kind == "mp4" and default_format() != "mp4":
        raise ModuleNotFoundError(f"an MP4 needs av, which is not installed: {install('data')}, or write a GIF",
                                  name="av")


def write_recording(directory: str | os.PathLike[str], recording: RolloutRecording, *, kind: Format = "gif",
                    with_seed: bool = False) -> Path:
    """Write TASK-POLICY[-SEED]-OUTCOME.KIND into a directory, which is created.

    Args:
        directory: of the file.
        recording: the episode.
        kind: of the file.
        with_seed: whether the seed is part of the name, for several episodes of a task.

    Returns:
        The path; OUTCOME is "success" or "failure".
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    seed = f"-{recording.seed}" if with_seed else ""
    outcome = "success" if recording.success else "failure"
    path = folder / f"{recording.task.replace('/', '_')}-{recording.policy}{seed}-{outcome}.{kind}"
    write = write_mp4 if kind == "mp4" else write_gif
    write(path, recording)
    return path


def write_gif(path: str | os.PathLike[str], recording: RolloutRecording) -> None:
    """Write an episode as an animated GIF."""
    images = list(draw_rollout(recording))
    durations = [recording.step_ms] * len(recording.actions) + [_LAST_MS]
    # One palette for all images: with one for each image, flat colours would flicker.
    drawn = [np.asarray(image).reshape(-1, 1, 3) for image in (images[0], images[-1])]
    palette = Image.fromarray(np.concatenate([*drawn, recording.frames.reshape(-1, 1, 3)])).quantize(256)
    flat = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    partial = _partial_path(path)
    flat[0].save(partial, "gif", save_all=True, append_images=flat[1:], duration=durations, loop=0,
                 comment=_description(recording).encode())
    os.replace(partial, path)


def write_mp4(path: str | os.PathLike[str], recording: RolloutRecording) -> None:
    """Write an episode as H.264 in an MP4.

    Raises:
        ModuleNotFoundError: PyAV is not installed.
    """
    check_format("mp4")
    import av

    step_ms, partial = recording.step_ms, _partial_path(path)
    with av.open(str(partial), "w", format="mp4") as container:
        container.metadata["comment"] = _description(recording)
        # Typed Any: the class of the stream depends on the codec's name.
        stream: Any = container.add_stream("libx264", rate=fractions.Fraction(1000, step_ms), options={"crf": "18"})
        stream.pix_fmt = "yuv420p"  # supported by every player
        for number, image in enumerate(draw_rollout(recording)):
            if not number:
                stream.width, stream.height = (side + side % 2 for side in image.size)  # the codec needs even sides
            canvas = Image.new("RGB", (stream.width, stream.height), _PAPER)
            canvas.paste(image)
            repeats = _LAST_MS // step_ms if number == len(recording.actions) else 1
            for _ in range(repeats):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(canvas), format="rgb24")))
        container.mux(stream.encode())
    os.replace(partial, path)


def _description(recording: RolloutRecording) -> str:
    """The recording without its images, as JSON."""
    return json.dumps({field.name: getattr(recording, field.name) for field in dataclasses.fields(recording)
                       if field.name != "frames"})


def read_description(path: Path) -> dict[str, Any] | None:
    """The fields of the RolloutRecording in a video, without its images.

    Returns:
        None if the video has none (of an older version, or of another program), or PyAV is missing for an MP4.
    """
    try:
        if path.suffix == ".gif":
            with Image.open(path) as image:
                comment = image.info.get("comment", b"")
        else:
            import av

            with av.open(str(path)) as container:
                comment = container.metadata.get("comment", "")
        found = json.loads(comment)
    except (ImportError, OSError, ValueError, RuntimeError):  # FFmpeg raises subclasses of the last three
        return None
    names = {field.name for field in dataclasses.fields(RolloutRecording)} - {"frames"}
    return found if isinstance(found, dict) and names <= set(found) else None


def _partial_path(path: str | os.PathLike[str]) -> Path:
    """The temporary name of a file that is being written."""
    return Path(path).with_name(f".{Path(path).name}.partial")


def draw_rollout(recording: RolloutRecording) -> Iterator[Image.Image]:
    """The images of a video, one a frame, all of the same size."""
    frames, actions = recording.frames, recording.actions
    scale = max(1, -(-_SIDE // max(frames.shape[1:3])))
    height, width = frames.shape[1] * scale, frames.shape[2] * scale
    font = ImageFont.load_default(_FONT_SIZE)
    title = f"{recording.task}, {recording.policy}, seed {recording.seed}"
    texts = {text: [title, *_wrapped(text, width, font)] for text in dict.fromkeys(recording.instructions)}
    top = _MARGIN + _LINE * max(map(len, texts.values())) + _MARGIN
    for step, frame in enumerate(frames):
        image = Image.new("RGB", (width + 2 * _MARGIN, top + height + _MARGIN + _LINE + _MARGIN), _PAPER)
        draw = ImageDraw.Draw(image)
        for line, text in enumerate(texts[recording.instructions[step]]):
            draw.text((_MARGIN, _MARGIN + _LINE * line), text, _INK if line else _PALE, font)
        last = step == len(actions)
        colour = (_GOOD if recording.success else _BAD) if last else _INK
        if last:
            draw.rectangle((_MARGIN - 5, top - 5, _MARGIN + width + 4, top + height + 4), fill=colour)
            steps = f"{len(actions)} step{'s' * (len(actions) != 1)}"
            below = f"succeeded after {steps}" if recording.success else f"failed after {steps}"
        else:
            probability = f" ({recording.probabilities[step]:.0%})" if recording.probabilities else ""
            below = f"step {step + 1} of {len(actions)}: {actions[step]}{probability}"
        enlarged = Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST)
        image.paste(enlarged, (_MARGIN, top))
        draw.text((_MARGIN, top + height + _MARGIN), below, colour, font)
        yield image


def _wrapped(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> list[str]:
    """The text in lines of at most `width` pixels, but at least one word."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
