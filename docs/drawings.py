"""The drawings of docs/guides/concepts.md, as SVG: `python docs/drawings.py [--out docs/pictures]`.

The tokens of an action are those of the codec.
"""

from __future__ import annotations

import argparse
from html import escape
from pathlib import Path

from agent_jax.actions import BoundSpec
from agent_jax.actions.simulators import METAWORLD
from agent_jax.actions.vocabulary import Block, Vocabulary

PICTURES = Path(__file__).resolve().parent / "pictures"
WORD, IMAGE, STATE, ACTION, HIDDEN, PLAIN = "#e8e8e8", "#cfe0f5", "#d5ecd0", "#fbdcb5", "#9a9a9a", "#ffffff"


class Drawing:
    """Boxes, texts and arrows on a white page; positions and sizes in pixels."""

    def __init__(self, title: str, width: int, height: int):
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="Helvetica, Arial, '
            f'sans-serif"><title>{escape(title)}</title><defs><marker id="a" markerWidth="8" markerHeight="8" refX="6" '
            'refY="3" orient="auto"><path d="M0,0 L7,3 L0,6 z" fill="#444"/></marker></defs>'
            f'<rect width="100%" height="100%" fill="{PLAIN}"/>']

    def text(self, x: float, y: float, text: str, *, size: int = 12, anchor: str = "middle",
             bold: bool = False) -> None:
        """A line of text whose baseline is at y."""
        weight = ' font-weight="bold"' if bold else ""
        self.parts.append(f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}"{weight} fill="#222">'
                          f'{escape(text)}</text>')

    def box(self, x: float, y: float, width: float, height: float, fill: str, text: str = "", *,
            size: int = 12) -> None:
        """A box with a text in its middle."""
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" fill="{fill}" '
                          'stroke="#555"/>')
        if text:
            self.text(x + width / 2, y + height / 2 + size / 3, text, size=size)

    def arrow(self, x: float, y: float, to_x: float, to_y: float) -> None:
        """A straight arrow."""
        self.parts.append(f'<path d="M{x:g},{y:g} L{to_x:g},{to_y:g}" stroke="#444" fill="none" marker-end="url(#a)"/>')

    def svg(self) -> str:
        """The file's text."""
        return "\n".join([*self.parts, "</svg>", ""])


def losses() -> Drawing:
    """Which outputs are compared with what: next words, next action tokens, hidden patches."""
    page = Drawing("The three losses", 856, 356)
    slots = [("</s>", WORD), ("go", WORD), ("to", WORD), ("red", WORD), ("v", IMAGE), ("v", IMAGE), ("v", IMAGE),
             ("s", STATE), ("[", ACTION), ("a", ACTION), ("a", ACTION), ("]", ACTION)]
    left, size, y = 300, 42, 250
    for i, (name, colour) in enumerate(slots):
        page.box(left + i * size, y, size, 32, colour, name)
        target = slots[i + 1] if i + 1 < len(slots) else None
        if target is not None and target[1] in (WORD, ACTION):
            page.arrow(left + (i + 0.5) * size, 158, left + (i + 0.5) * size, 132)
            page.box(left + i * size + 3, 96, size - 6, 30, target[1], target[0])
    page.box(left, 160, size * len(slots), 46, PLAIN, "language model: attention to the slots before")
    page.arrow(left + 6 * size, 246, left + 6 * size, 210)
    page.text(left + 1.5 * size, 82, "language NLL", bold=True)
    page.text(left + 9.5 * size, 82, "action NLL", bold=True)
    page.text(left + 6 * size, 62,
              "each slot predicts the next word or action token; images and states are inputs only")
    page.text(left + 6 * size, 304, "the row")
    hidden = {0, 2, 3, 5, 6, 7, 10, 11, 12, 13, 15, 9}
    for row in range(4):
        for column in range(4):
            index = 4 * row + column
            page.box(14 + 20 * column, 236 + 20 * row, 20, 20, HIDDEN if index in hidden else IMAGE)
            page.box(164 + 20 * column, 36 + 20 * row, 20, 20, IMAGE if index in hidden else PLAIN)
    page.text(14, 334, "image, patches hidden", anchor="start")
    page.box(114, 254, 112, 42, PLAIN, "vision encoder")
    page.arrow(96, 276, 112, 276)
    page.arrow(228, 268, 296, 266)
    page.text(262, 258, "all patches", size=10)
    page.box(134, 160, 142, 40, PLAIN, "MAE decoder")
    page.arrow(196, 252, 204, 204)
    page.text(130, 232, "visible patches", size=10)
    page.arrow(205, 158, 205, 122)
    page.text(205, 24, "MAE: squared error", bold=True)
    page.text(140, 140, "the hidden patches", size=10)
    return page


def action_tokens() -> Drawing:
    """A Meta-World action, the tokens that the codec makes of it, and the values that those decode to."""
    vocabulary = Vocabulary.build("bytes", [Block(METAWORLD.block, METAWORLD.tokens())])
    spec = BoundSpec(METAWORLD, vocabulary)
    values = {"action": [0.42, -1.0, 0.07, 1.0]}
    ids = spec.encode(values)
    decoded = spec.decode(ids)
    page = Drawing("From an action to tokens and back", 856, 216)
    page.text(16, 36, "action: ", anchor="start", bold=True)
    page.text(16, 186, "decoded: ", anchor="start", bold=True)
    left, width = 110, 740 / len(ids)
    numbers = iter(zip(("dx", "dy", "dz", "gripper"), values["action"], decoded["action"], strict=True))
    for i, token in enumerate(ids.tolist()):
        name = vocabulary.token(token)
        page.box(left + i * width, 84, width - 4, 34, ACTION, name, size=11)
        if "STARTACTION" not in name and "ENDOFACTION" not in name:
            label, before, after = next(numbers)
            x = left + i * width + width / 2
            page.text(x, 36, f"{label} = {before:g}")
            page.arrow(x, 44, x, 80)
            page.arrow(x, 122, x, 168)
            page.text(x, 186, f"{float(after):g}")
    page.text(16, 106, "tokens: ", anchor="start", bold=True)
    return page


def windows() -> Drawing:
    """An episode cut into windows for training, and what the agent sees at a step by either history."""
    page = Drawing("Windows in training, history when acting", 856, 330)
    left, size = 180, 56
    x = [left + size * step for step in range(12)]
    page.text(14, 44, "episode", anchor="start", bold=True)
    for step in range(12):
        page.box(x[step], 24, size - 4, 32, IMAGE, f"step {step}", size=11)
    page.text(14, 94, "training", anchor="start", bold=True)
    page.text(14, 110, "window = 4, stride = 4", anchor="start", size=11)
    for start in (0, 4, 8):
        page.box(x[start], 78, 4 * size - 4, 32, ACTION, "one sample: 4 images, 4 actions")
    rows = (("acting, sliding", "the last 4 steps", {5: range(2, 6), 6: range(3, 7)}),
            ("acting, flushed", "since the last flush", {5: range(4, 6), 6: range(4, 7)}))
    y = 146
    for name, note, seen in rows:
        page.text(14, y + 18, name, anchor="start", bold=True)
        page.text(14, y + 34, note, anchor="start", size=11)
        for now, steps in seen.items():
            for step in steps:
                page.box(x[step], y, size - 4, 28, ACTION if step == now else IMAGE, str(step), size=11)
            page.text(x[now] + size + 4, y + 18, f"at step {now}", anchor="start", size=11)
            y += 36
        y += 16
    return page


DRAWINGS = {"losses": losses, "action_tokens": action_tokens, "windows": windows}


def main() -> None:
    """Write the drawings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PICTURES)
    options = parser.parse_args()
    for name, draw in DRAWINGS.items():
        (options.out / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
