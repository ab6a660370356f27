"""The device groups of a collective, in every form that HLO text has.

    replica_groups={{0,2},{1,3}}                      listed
    replica_groups=[2,2]<=[2,2]T(1,0)                 numbers 0..3 in the right shape, transposed, in the left one
    replica_groups=mesh['a'=2,'b'=2] {'a'}            over axis a of a mesh of these sizes
    source_target_pairs={{0,1},{1,0}}                 (sender, receiver)

A device is its place in the order of the program's mesh.
"""

from __future__ import annotations

import math
import re

import numpy as np


def replica_groups(attributes: str, devices: int) -> np.ndarray:
    """The devices of each group of a collective, int (groups, size).

    Args:
        attributes: of the instruction.
        devices: of the whole program; without listed groups all form one.

    Raises:
        ValueError: an unknown form, or groups of unequal size.
    """
    if pairs := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes):
        return np.asarray([[int(n) for n in pair] for pair in re.findall(r"\{(\d+),(\d+)\}", pairs[1])]).reshape(-1, 2)
    if listed := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", attributes):
        rows = [[int(n) for n in row.split(",")] for row in re.findall(r"\{([\d,]+)\}", listed[1])]
        if len({len(row) for row in rows}) > 1:
            raise ValueError(f"replica_groups={listed[0][:80]}: found groups of unequal size")
        return np.asarray(rows) if rows else np.arange(devices)[None]
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        return _iota(iota[2], iota[3]).reshape(_numbers(iota[1]))
    ids_of_mesh = r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
    if mesh := re.search(rf"replica_groups=mesh\[([^\]]*)\]{ids_of_mesh} \{{([^}}]*)\}}", attributes):
        axes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        sizes = [int(size) for size in axes.values()]
        ids = _iota(mesh[2], mesh[3]) if mesh[2] else np.arange(math.prod(sizes))
        over = re.findall(r"'([^']+)'", mesh[4])
        places = [list(axes).index(axis) for axis in over]
        moved = np.moveaxis(ids.reshape(sizes), places, range(len(sizes) - len(places), len(sizes)))
        return moved.reshape(-1, math.prod(sizes[place] for place in places))
    if "replica_groups=" not in attributes:
        return np.arange(devices)[None]
    raise ValueError(f"replica_groups: found {attributes[:120]!r}, an unknown form")


def _iota(shape: str, permutation: str | None) -> np.ndarray:
    sizes = _numbers(shape)
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return ids.transpose(_numbers(permutation)).ravel() if permutation else ids.ravel()


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]
