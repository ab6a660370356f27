"""Fill our leaves from a folder by a table of rules, once every name, shape and dtype is known to fit."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from agent_jax.convert.huggingface.load_report import Item, Shape
from agent_jax.convert.huggingface.weights_folder import FLOATS, WeightsFolder
from agent_jax.convert.mapping import Rule, source_shape, transform

LISTED = 20  # paths of each kind that an error lists
CHUNK_ROWS = 4096  # of a token table that are read at once to compare it

Sources = dict[Rule, list[tuple[str, ...]]]  # the tensors of each rule, by layer; one entry if there is none


def sources_of(rules: Sequence[Rule], depth: int, folder: WeightsFolder, prefixes: Sequence[str]) -> Sources:
    """The tensors that the rules ask for, under whichever of the prefixes the folder has most of them."""

    def under(prefix: str) -> Sources:
        return {rule: [tuple(prefix + name.format(layer) for name in rule.sources)
                       for layer in range(depth if rule.stacked else 1)] for rule in rules}

    return max(map(under, prefixes), key=lambda sources: len(set(names_of(sources)) & folder.shapes.keys()))


def names_of(sources: Sources) -> list[str]:
    """All tensors, flat."""
    return [name for layers in sources.values() for names in layers for name in names]


def check_tensors(folder: WeightsFolder, sources: Sources, targets: Mapping[str, Shape], fresh: Mapping[str, Item],
                  left_out: Mapping[str, Item], other_shapes: Mapping[str, Shape] | None = None) -> None:
    """Refuse a folder whose tensors are not exactly those that are used or left out.

    Args:
        folder: opened.
        sources: the tensors to be used.
        targets: shapes of all leaves of the part.
        fresh: leaves, or rows of one, that no tensor fills.
        left_out: tensors that are not used.
        other_shapes: shapes that do not follow from the target's.

    Raises:
        ValueError: lists the tensors that are missing, unknown, or of another shape or dtype.
    """
    filled_once = [*(rule.target for rule in sources), *(path for path in fresh if "[" not in path)]
    assert sorted(filled_once) == sorted(targets), "a leaf filled twice or never"
    expected: dict[str, Shape] = {}
    for rule, layers in sources.items():
        shape = source_shape(rule.form, targets[rule.target][rule.stacked :])
        expected |= dict.fromkeys(itertools.chain.from_iterable(layers), shape)
    assert len(expected) == len(names_of(sources)), "a tensor used twice"
    expected |= other_shapes or {}
    found = folder.shapes
    lines = {
        "missing": [f"{name} {list(expected[name])}" for name in expected if name not in found],
        "unknown": [f"{name} {list(found[name])}" for name in found if name not in expected and name not in left_out],
        "another shape": [f"{name}: found {list(found[name])}, expected {list(expected[name])}"
                          for name in expected if name in found and found[name] != expected[name]],
        "another type": [f"{name}: found {folder.dtypes[name]}, expected one of {', '.join(FLOATS)}"
                         for name in expected if name in found and folder.dtypes[name] not in FLOATS],
    }
    if any(lines.values()):
        message = [f"{folder.path}: its tensors are not those that its config.json describes:"]
        for title, items in lines.items():
            message += [f"  {title}: {item}" for item in items[:LISTED]]
            message += [f"  {title}: and {len(items) - LISTED} more"] if len(items) > LISTED else []
        message.append("Nothing was changed. Copy or download the folder again, or mend its config.json.")
        raise ValueError("\n".join(message))


def filled(folder: WeightsFolder, rule: Rule, layers: Sequence[tuple[str, ...]], shape: Shape) -> np.ndarray:
    """One leaf in f32; its layers are read one after the other."""
    leaf = np.empty(shape, np.float32)
    places = leaf if rule.stacked else leaf[None]
    for place, names in zip(places, layers, strict=True):
        place[...] = transform(rule.form, [folder.read_finite(name) for name in names])
    return leaf


def check_tied(folder: WeightsFolder, head: str, table: str) -> None:
    """Refuse an output head that differs from the token table. Raises ValueError."""
    end = folder.shapes[table][0]
    for start in range(0, end, CHUNK_ROWS):
        rows = slice(start, min(start + CHUNK_ROWS, end))  # safetensors refuses what NumPy would clip
        if not np.array_equal(folder.read(head, rows), folder.read(table, rows), equal_nan=True):
            raise ValueError(f"{folder.path}: {head} differs from {table} in rows {start} to {rows.stop}; only an "
                             "output head that is tied to the token table is supported")


def extended_table(
    folder: WeightsFolder, table: str, text_rows: int, rows: int, std: float, seed: int
) -> np.ndarray:
    """The first `text_rows` of a token table, then rows of their mean + N(0, std), the same however many there are."""
    leaf = np.empty((rows, folder.shapes[table][1]), np.float32)
    leaf[:text_rows] = folder.read_finite(table, slice(0, text_rows))
    mean = leaf[:text_rows].mean(axis=0, dtype=np.float64)
    leaf[text_rows:] = mean + std * np.random.default_rng(seed).standard_normal(leaf[text_rows:].shape)
    return leaf


def in_short(rule: Rule, layers: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The tensors of a rule, one name for all layers: `model.layers.{0..11}.fc1.weight`."""
    if not rule.stacked:
        return layers[0]
    prefix = layers[0][0].removesuffix(rule.sources[0].format(0))
    return tuple(prefix + name.replace("{}", f"{{0..{len(layers) - 1}}}") for name in rule.sources)
