"""Fills leaves from a folder by a table of rules, after a check of every name, shape and dtype."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from agent_jax.checkpoints.exported.mapping import Rule, inverse, transform
from agent_jax.checkpoints.exported.tensor_files import mismatches
from agent_jax.convert.huggingface.load_report import Item, Shape
from agent_jax.convert.huggingface.weights_folder import WeightsFolder

CHUNK_ROWS = 4096  # of a token table, read at once for a comparison

Sources = dict[Rule, list[tuple[str, ...]]]  # the tensors of each rule, by layer; one entry if it has no layers


def sources_of(rules: Sequence[Rule], depth: int, folder: WeightsFolder, prefixes: Sequence[str]) -> Sources:
    """The tensors of the rules, with the prefix that fits most of the folder's tensors."""

    def under(prefix: str) -> Sources:
        return {rule: [tuple(prefix + name.format(layer) for name in rule.sources)
                       for layer in range(depth if rule.stacked else 1)] for rule in rules}

    return max(map(under, prefixes), key=lambda sources: len(set(names_of(sources)) & folder.shapes.keys()))


def names_of(sources: Sources) -> list[str]:
    """All tensors."""
    return [name for layers in sources.values() for names in layers for name in names]


def check_tensors(folder: WeightsFolder, sources: Sources, targets: Mapping[str, Shape], fresh: Mapping[str, Item],
                  left_out: Mapping[str, Item], other_shapes: Mapping[str, Shape] | None = None) -> None:
    """Refuse a folder whose tensors are not exactly those that are used or left out.

    Args:
        folder: opened.
        sources: the tensors to use.
        targets: shapes of all leaves of the part.
        fresh: leaves, or rows of a leaf, that no tensor fills.
        left_out: tensors that are not used.
        other_shapes: shapes that do not follow from the target's.

    Raises:
        ValueError: lists the tensors that are missing, unknown, or of another shape or dtype.
    """
    filled_once = [*(rule.target for rule in sources), *(path for path in fresh if "[" not in path)]
    assert sorted(filled_once) == sorted(targets), "a leaf filled twice or never"
    expected: dict[str, Shape] = {}
    for rule, layers in sources.items():
        layer = np.broadcast_to(np.float32(0), targets[rule.target][rule.stacked :])
        shape = inverse(rule.form, layer)[0].shape
        expected |= dict.fromkeys(itertools.chain.from_iterable(layers), shape)
    assert len(expected) == len(names_of(sources)), "a tensor used twice"
    expected |= other_shapes or {}
    if lines := [f"  {line}" for line in mismatches(folder.shapes, folder.dtypes, expected, left_out)]:
        raise ValueError("\n".join([
            f"{folder.path}: its tensors are not those that its config.json describes:", *lines,
            "Nothing was changed. Copy or download the folder again, or correct its config.json."]))


def filled(folder: WeightsFolder, rule: Rule, layers: Sequence[tuple[str, ...]], shape: Shape) -> np.ndarray:
    """One leaf in f32; its layers are read one after the other."""
    leaf = np.empty(shape, np.float32)
    places = leaf if rule.stacked else leaf[None]
    for place, names in zip(places, layers, strict=True):
        place[...] = transform(rule.form, [folder.read_finite(name) for name in names])
    return leaf


def check_tied(folder: WeightsFolder, head: str, table: str) -> None:
    """Raise ValueError for an output head that differs from the token table."""
    end = folder.shapes[table][0]
    for start in range(0, end, CHUNK_ROWS):
        rows = slice(start, min(start + CHUNK_ROWS, end))  # safetensors does not clip slices
        if not np.array_equal(folder.read(head, rows), folder.read(table, rows), equal_nan=True):
            raise ValueError(f"{folder.path}: {head} differs from {table} in rows {start} to {rows.stop}; only a "
                             "tied output head is supported")


def extended_table(
    folder: WeightsFolder, table: str, text_rows: int, rows: int, std: float, seed: int
) -> np.ndarray:
    """The first `text_rows` of a token table, then rows of their mean + N(0, std), independent of their number."""
    leaf = np.empty((rows, folder.shapes[table][1]), np.float32)
    leaf[:text_rows] = folder.read_finite(table, slice(0, text_rows))
    mean = leaf[:text_rows].mean(axis=0, dtype=np.float64)
    leaf[text_rows:] = mean + std * np.random.default_rng(seed).standard_normal(leaf[text_rows:].shape)
    return leaf


def in_short(rule: Rule, layers: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The tensors of a rule, one name for all layers, as `model.layers.{0..11}.fc1.weight`."""
    if not rule.stacked:
        return layers[0]
    prefix = layers[0][0].removesuffix(rule.sources[0].format(0))
    return tuple(prefix + name.replace("{}", f"{{0..{len(layers) - 1}}}") for name in rule.sources)
