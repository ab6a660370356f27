"""The scenario of vizdoom.py as a WAD file: one square room, and actors of every kind and colour.

A WAD (Doom's archive format, 1993) is a header, named lumps and their directory. The map is text in UDMF (Universal
Doom Map Format 1.1), the actors are text in DECORATE. Their sprites are those of the game's WAD (Freedoom, in ViZDoom's
package), recoloured.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

ROOM = 320  # map units from the middle to each wall; the player is 32 wide and 56 high
# Sprite and scale by kind. The scales make every kind visible across the room in an image of 64 pixels.
KINDS = {
    "barrel": ("BAR1 A", 2.0),
    "armor": ("ARM1 A", 3.0),
    "skull": ("RSKU A", 4.0),
    "medikit": ("MEDI A", 3.0),
    "lamp": ("TLMP A", 1.0),
    "pillar": ("COL1 A", 1.5),
}
# Darkest and brightest shade (red, green, blue) of each colour; the sprite's greys are mapped between them.
COLORS = {
    "red": ((0.2, 0.0, 0.0), (1.6, 0.1, 0.1)),
    "green": ((0.0, 0.2, 0.0), (0.1, 1.4, 0.1)),
    "blue": ((0.0, 0.0, 0.3), (0.3, 0.3, 2.0)),
    "yellow": ((0.3, 0.3, 0.0), (1.9, 1.7, 0.1)),
}
MAP = "MAP01"


def actor_name(color: str, kind: str) -> str:
    """The DECORATE class of an object."""
    return f"Goal{color.title()}{kind.title()}"


def scenario() -> bytes:
    """The bytes of the WAD, always the same."""
    lumps = [("DECORATE", _actors().encode()), (MAP, b""), ("TEXTMAP", _room().encode()), ("ENDMAP", b"")]
    return _wad(lumps)


def _wad(lumps: Sequence[tuple[str, bytes]]) -> bytes:
    body, directory = b"", b""
    for name, content in lumps:
        directory += struct.pack("<ii8s", 12 + len(body), len(content), name.encode())
        body += content
    return struct.pack("<4sii", b"PWAD", len(lumps), 12 + len(body)) + body + directory


def _actors() -> str:
    """Every object, visible and without collision; vizdoom.py decides which object is reached."""
    texts = []
    for kind, (sprite, scale) in KINDS.items():
        for color, shades in COLORS.items():
            low, high = ("[" + ",".join(map(str, shade)) + "]" for shade in shades)
            texts.append(f'actor {actor_name(color, kind)}\n{{\n  Radius 16\n  Height 56\n  Scale {scale}\n'
                         f'  Translation "0:255=%{low}:{high}"\n'
                         f'  States\n  {{\n  Spawn:\n    {sprite} -1 Bright\n    Stop\n  }}\n}}\n')
    return "".join(texts)


def _room() -> str:
    corners = ((-ROOM, -ROOM), (-ROOM, ROOM), (ROOM, ROOM), (ROOM, -ROOM))  # clockwise: walls face to the right
    number = len(corners)
    skills = "".join(f"skill{level}=true;" for level in range(1, 6))
    return "\n".join([
        'namespace="zdoom";',
        f"thing{{x=0.0;y=0.0;angle=90;type=1;single=true;{skills}}}",  # the player's start
        *(f"vertex{{x={x}.0;y={y}.0;}}" for x, y in corners),
        *(f"linedef{{v1={i};v2={(i + 1) % number};sidefront={i};blocking=true;}}" for i in range(number)),
        *['sidedef{sector=0;texturemiddle="STARTAN3";}'] * number,
        'sector{heightfloor=0;heightceiling=192;texturefloor="FLOOR4_8";textureceiling="CEIL3_5";lightlevel=208;}', "",
    ])  # fmt: skip
