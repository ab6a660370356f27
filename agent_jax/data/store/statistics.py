"""Statistics of the numbers of a split, in one pass over its records that decodes no image.

    records -> values of the keys -> count, min, max, mean, std of all; quantiles and distinct values of a sample
                                  -> share of values outside and at given bounds

Mean and standard deviation are computed in float64 from blocks of records (Chan, Golub and LeVeque, 1979). Quantiles
need the values in memory: all of them up to `MAX_VALUES`, beyond that every second, fourth, ... step. Both results are
cached (cache.py).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from agent_jax.data.store.cache import cached_file, read_cached, write_cached

if TYPE_CHECKING:
    from agent_jax.data.store.schema import Field
    from agent_jax.data.store.store import Store

MAX_VALUES = 2**26  # in memory, of all keys together: 256 MiB of float32
QUANTILES = (0.001, 0.005, 0.01, 0.02, 0.05, 0.25, 0.5, 0.75, 0.95, 0.98, 0.99, 0.995, 0.999)
SAMPLED_STEPS = 512  # evenly spaced over the split
MOST_DISTINCT = 64  # listed values; a component with more counts as continuous
ROUNDING = 1e-6  # of the width of the bounds: rounding of decimal bounds to float32

_FORMAT = 1
_BLOCK_STEPS = 4096  # of the records that are summed together: many records are short


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Statistics of one key; arrays are float64 and have the shape of one step's value."""

    count: int  # steps
    min: np.ndarray
    max: np.ndarray
    mean: np.ndarray
    std: np.ndarray  # of the population
    quantiles: Mapping[float, np.ndarray]  # by QUANTILES, interpolated linearly
    distinct: tuple[tuple[float, ...], ...]  # ascending, by component in C order; () for more than MOST_DISTINCT values
    sample: np.ndarray  # (n, *shape): at most SAMPLED_STEPS steps, the same ones for every key
    data_hash: str  # of every number, in order
    exact: bool  # whether quantiles and distinct values cover every step

    @property
    def q01(self) -> np.ndarray:
        """The 1% quantile."""
        return self.quantiles[0.01]

    @property
    def q99(self) -> np.ndarray:
        """The 99% quantile."""
        return self.quantiles[0.99]


@dataclasses.dataclass(frozen=True)
class Shares:
    """Shares of a key's steps, in [0, 1]; float64 of the shape of one step's value."""

    outside: np.ndarray  # below the lower or above the upper bound
    at_bound: np.ndarray  # at one of them


class SplitNumbers:
    """Statistics of some keys of a split; the records are read once, and only if the cache lacks a result."""

    def __init__(self, store: Store, split: str, keys: Sequence[str]):
        """Choose the keys: those of a spec (see `Store.step_field`), or paths of step fields.

        Raises:
            ValueError: an unknown field, or a field that is not numeric or not of the steps.
        """
        self._store, self.split = store, split
        self._fields: dict[str, Field] = {}
        for key in dict.fromkeys(keys):
            field = store.field(key) if key in store.fields else store.step_field(key)
            if field.kind != "array" or not field.per_step:
                raise ValueError(f"{store.directory}: field {field.path!r} has no statistics: expected a numeric "
                                 f"field of the steps, found {field.kind}")
            self._fields[key] = field

    @functools.cached_property
    def statistics(self) -> dict[str, Statistics]:
        """Statistics by key.

        Raises:
            ValueError: an unknown split, or a number that is not finite; names record, step and component.
        """
        paths = [field.path for field in self._fields.values()]
        file = cached_file("statistics", self._store, self.split, _FORMAT, paths)
        saved = read_cached(file)
        if saved is None:
            saved = {f"{name} {path}": array for path, of_path in self._values.items()
                     for name, array in of_path.summary().items()}
            write_cached(file, saved)
        return {key: _from_arrays({name: saved[f"{name} {field.path}"] for name in _ARRAYS}, field.shape)
                for key, field in self._fields.items()}

    def shares(self, bounds: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Shares]:
        """Shares of steps outside and at the bounds (low, high) of each key; bounds have the shape of a value."""
        requested = {key: [np.asarray(edge, np.float64).ravel().tolist() for edge in edges]
                     for key, edges in bounds.items()}
        paths = {key: self._fields[key].path for key in bounds}
        file = cached_file("shares", self._store, self.split, _FORMAT, paths, requested)
        saved = read_cached(file)
        if saved is None:
            saved = {}
            for key, (low, high) in requested.items():
                low_D, high_D = np.asarray(low), np.asarray(high)
                values_ND = self._values[paths[key]].sample()
                slack_D = ROUNDING * (high_D - low_D)
                outside_ND = (values_ND < low_D - slack_D) | (values_ND > high_D + slack_D)
                near_ND = (np.abs(values_ND - low_D) <= slack_D) | (np.abs(values_ND - high_D) <= slack_D)
                saved[f"outside {key}"], saved[f"at_bound {key}"] = outside_ND.mean(axis=0), near_ND.mean(axis=0)
            write_cached(file, saved)
        return {key: Shares(saved[f"outside {key}"].reshape(self._fields[key].shape),
                            saved[f"at_bound {key}"].reshape(self._fields[key].shape)) for key in bounds}

    @functools.cached_property
    def _values(self) -> dict[str, _Values]:
        """All values by path: the pass over the split."""
        values = {field.path: _Values(field) for field in self._fields.values()}
        most = MAX_VALUES // max(1, sum(of_path.size for of_path in values.values()))
        for episode in self._store.split(self.split):
            for path, of_path in values.items():
                of_path.add(np.asarray(episode.values(path, 0, episode.steps)), episode.where)
                of_path.thin(most)
        for of_path in values.values():
            of_path.flush()
            of_path.thin(most)
        return values


class _Values:
    """Running statistics of one field."""

    def __init__(self, field: Field):
        self._path, self.size = field.path, int(np.prod(field.shape))
        self._steps_sampled, self._count, self._every = 0, 0, 1
        self._sampled: list[np.ndarray] = []
        self._waiting: list[tuple[str, np.ndarray]] = []  # records of the next block
        self._steps_waiting = 0
        self._mean_D, self._squares_D = np.zeros(self.size), np.zeros(self.size)
        self._min_D, self._max_D = np.full(self.size, np.inf), np.full(self.size, -np.inf)
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, values: np.ndarray, where: str) -> None:
        """The values of a record, (steps, *shape).

        Raises:
            ValueError: a number is not finite, in this or an earlier record; names record, step and component.
        """
        self._waiting.append((where, values.reshape(len(values), self.size)))
        self._steps_waiting += len(values)
        if self._steps_waiting >= _BLOCK_STEPS:
            self.flush()

    def flush(self) -> None:
        """Process the waiting records as one block; raises as `add`."""
        if not self._steps_waiting:
            return
        values_ND = np.concatenate([values_ND for _, values_ND in self._waiting])
        wide_ND = values_ND.astype(np.float64)
        if not np.isfinite(wide_ND).all():
            raise ValueError(self._not_finite())
        self._waiting, self._steps_waiting = [], 0
        self._hash.update(values_ND.tobytes())
        first = -self._count % self._every  # sample the steps whose number in the split is a multiple of `every`
        count, self._count = self._count, self._count + len(wide_ND)
        self._sampled.append(values_ND[first :: self._every].copy())  # a view would keep the whole block in memory
        self._steps_sampled += len(self._sampled[-1])
        mean_D = wide_ND.mean(axis=0)
        self._squares_D += np.square(wide_ND - mean_D).sum(axis=0)
        self._squares_D += np.square(mean_D - self._mean_D) * (count * len(wide_ND) / self._count)
        self._mean_D += (mean_D - self._mean_D) * (len(wide_ND) / self._count)
        self._min_D = np.minimum(self._min_D, wide_ND.min(axis=0))
        self._max_D = np.maximum(self._max_D, wide_ND.max(axis=0))

    def _not_finite(self) -> str:
        """The message about the first waiting number that is not finite."""
        where, values_ND = next(waiting for waiting in self._waiting if not np.isfinite(waiting[1]).all())
        step, component = np.argwhere(~np.isfinite(values_ND))[0].tolist()
        return (f"{where}, step {step}: {self._path}[{component}] is {values_ND[step, component]}, expected a finite "
                "number; repair or remove this episode")

    def thin(self, most: int) -> None:
        """Drop every second sampled step until at most `most` are left."""
        while self._steps_sampled > most:
            self._sampled, self._every = [self.sample()[::2].copy()], 2 * self._every
            self._steps_sampled = len(self._sampled[0])

    def sample(self) -> np.ndarray:
        """The sampled values, (steps, components)."""
        if len(self._sampled) > 1:
            self._sampled = [np.concatenate(self._sampled)]
        return self._sampled[0]

    def summary(self) -> dict[str, np.ndarray]:
        """The arrays of the cache file, by the names of _ARRAYS."""
        sample_ND = self.sample()
        sorted_DN = np.sort(sample_ND.T, axis=1)
        place_Q = np.asarray(QUANTILES) * (len(sample_ND) - 1)
        below_DQ, above_DQ = (sorted_DN[:, edge.astype(int)].astype(np.float64)
                              for edge in (np.floor(place_Q), np.ceil(place_Q)))
        quantiles_DQ = below_DQ + (above_DQ - below_DQ) * (place_Q % 1.0)[None]
        distinct_DM = np.full((self.size, MOST_DISTINCT), np.nan)  # NaN: no value
        for component, values_N in enumerate(sorted_DN):
            values = values_N[np.concatenate([[True], values_N[1:] != values_N[:-1]])]
            if len(values) <= MOST_DISTINCT:
                distinct_DM[component, : len(values)] = values
        chosen = np.unique(np.linspace(0, len(sample_ND) - 1, SAMPLED_STEPS).round().astype(int))
        # Rounding must not give a constant a deviation.
        std_D = np.where(self._min_D < self._max_D, np.sqrt(self._squares_D / self._count), 0.0)
        data_hash = np.frombuffer(self._hash.digest(), np.uint8)
        return {"count": np.asarray(self._count), "min": self._min_D, "max": self._max_D, "mean": self._mean_D,
                "std": std_D, "quantiles": quantiles_DQ.T, "distinct": distinct_DM, "sample": sample_ND[chosen],
                "data_hash": data_hash, "exact": np.asarray(self._every == 1)}


_ARRAYS = ("count", "min", "max", "mean", "std", "quantiles", "distinct", "sample", "data_hash", "exact")


def _from_arrays(saved: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> Statistics:
    plain: dict[str, Any] = {name: saved[name].reshape(shape) for name in ("min", "max", "mean", "std")}
    quantiles = {q: values_D.reshape(shape) for q, values_D in zip(QUANTILES, saved["quantiles"], strict=True)}
    distinct = tuple(tuple(values_M[~np.isnan(values_M)].tolist()) for values_M in saved["distinct"])
    return Statistics(count=int(saved["count"]), **plain, quantiles=quantiles, distinct=distinct,
                      sample=saved["sample"].reshape(-1, *shape), data_hash=saved["data_hash"].tobytes().hex(),
                      exact=bool(saved["exact"]))
