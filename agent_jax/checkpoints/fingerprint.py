"""A 32-bit fingerprint of every array of a tree, the same on any mesh: it tells a flipped bit from a good checkpoint.

    array -> 32-bit words -> mixed with their position -> summed modulo 2^32

For a fixed position the mixing is one to one, so a change within one word always changes the sum; any other change
goes unseen with a chance of 2^-32. Sums of unsigned integers do not depend on their order, so neither does the result
on how the array is laid out over devices or processes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def flat(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by path, such as "params/vision/pre_norm/scale"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`, as plain nested dicts, whatever classes the tree was of."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def fingerprint(tree: Any) -> dict[str, int]:
    """The fingerprint of each array by path; shape and dtype are not part of it.

    Waits for the arrays, and for one scalar of each to reach the host. All processes must call it together.

    Args:
        tree: any pytree of bool, integer or floating `jax.Array`s of up to 64 bits.

    Returns:
        Path -> integer in [0, 2^32).
    """
    return {path: int(value) for path, value in jax.device_get(_sums(flat(tree))).items()}


@jax.jit
def _sums(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """In one program: collectives of several that run at a time may wait for each other, on CPU devices for ever."""
    return {path: _sum(leaf) for path, leaf in leaves.items()}


def _sum(array: jax.Array) -> jax.Array:
    """Sum of the mixed words of one array, uint32 []."""
    words = _words(array)
    position = jnp.zeros(words.shape, jnp.uint32)
    for axis in range(words.ndim):  # no reshape to one axis: it would gather a sharded array
        stride = math.prod(words.shape[axis + 1 :]) % 2**32
        position += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * np.uint32(stride)
    mixed = words ^ (position * np.uint32(0x9E3779B9))  # 2^32 / golden ratio: neighbours differ in many bits
    # The finalizer of MurmurHash3 (Appleby, public domain), a bijection of 32-bit words.
    mixed = (mixed ^ (mixed >> 16)) * np.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * np.uint32(0xC2B2AE35)
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)


def _words(array: jax.Array) -> jax.Array:
    """The bits as uint32: narrower types one word a value, 64-bit types two in a new last axis."""
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    bits = array.dtype.itemsize * 8
    if bits >= 32:
        return jax.lax.bitcast_convert_type(array, jnp.uint32)
    return jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{bits}")).astype(jnp.uint32)
