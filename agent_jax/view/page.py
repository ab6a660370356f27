"""Self-contained HTML pages: escaped texts, images and videos as data URIs, no script, no network."""

from __future__ import annotations

import base64
import functools
import io
import mimetypes
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from agent_jax.json_files import check_json_path, write_text


@functools.cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True,
                              undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def render(template: str, **values: Any) -> str:
    """The text of a template; every value is escaped unless it is Markup."""
    return _templates().get_template(template).render(values)


def page_path(text: str) -> Path:
    """The path of --out, checked before the work starts.

    Raises:
        ValueError: not a name of an HTML file, or no file can be written there.
    """
    if Path(text).suffix != ".html":
        raise ValueError(f"--out={text}: expected a name that ends in .html")
    return check_json_path(text, "--out=")


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write a page, as `write_text` does."""
    write_text(path, render(template, **values))


def data_uri(content: bytes, name: str) -> str:
    """A file's content as a data URI, of the type that its name ends in."""
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def image_uri(image: np.ndarray | Image.Image, side: int = 0) -> str:
    """An image as a PNG in a data URI.

    Args:
        image: uint8 (height, width, 3), or a Pillow image.
        side: pixels of the longer side, to which a smaller image is enlarged by whole factors; 0: as it is.
    """
    picture = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
    if (scale := side // max(picture.size)) > 1:  # blocks of pixels, as the model sees them
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return data_uri(buffer.getvalue(), "image.png")
