"""Batches for training, in an order that depends on the seed alone, not on hosts, workers or restarts.

    epoch e: samples (mixture) -> plan of rows (packing) -> rows, decoded and laid out -> global batches
    process p of P takes the p-th part of each global batch

The position in the data is a count of rows of the whole run, the same for any number of processes. Every batch comes
with the state that continues after it, so that a restart neither loses nor repeats prefetched batches.
"""

from __future__ import annotations

import bisect
import copy
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import grain
import numpy as np
from absl import flags

from agent_jax.batch import Batch, RowSize
from agent_jax.data.pipeline.layout import Row, blank_row, lay_out, stack
from agent_jax.data.pipeline.mixture import Epoch, epoch_samples
from agent_jax.data.pipeline.packing import PackingPlan, fitted_size, plan_rows
from agent_jax.data.pipeline.windows import Windows

# Without worker processes. Decoding and resizing release the interpreter lock, and threads copy no batch.
_THREADS = 2
State = dict[str, Any]  # JSON: rows of the run, epoch, row of the epoch, windows of each domain


class PackedRows:
    """The rows of each epoch, in order; a row is decoded on request."""

    def __init__(self, windows: Sequence[Windows], size: RowSize, visual_tokens: int, patches: int, seed: int, *,
                 fit: bool = False):
        """Plan the first epoch.

        Args:
            windows: of each domain, by its index.
            size: of a row.
            visual_tokens: V, visual tokens of an image in the language model's row.
            patches: P, patches of an image.
            seed: of order and mixture.
            fit: shorten the rows to what the windows of the first epoch fill.

        Raises:
            ValueError: there are no windows, or one does not fit into a row.
        """
        if not sum(len(domain) for domain in windows):
            raise ValueError("data: no windows in any domain, expected at least one")
        self.counts = [len(domain) for domain in windows]
        self.windows, self.size, self._seed = tuple(windows), size, seed
        self.visual_tokens, self._patches = visual_tokens, patches
        self._first_usage = [domain.usage(visual_tokens) for domain in windows]
        self._weights = [domain.domain.weight for domain in windows]
        self._epochs: dict[int, tuple[Epoch, PackingPlan]] = {}
        if fit:
            samples = epoch_samples(self.counts, self._weights, 0, seed)
            largest = np.max([domain.largest_usage(visual_tokens) for domain in windows], axis=0)
            self.size = fitted_size(self._usage(samples), largest, size, visual_tokens, self._exclusive(samples))
        self.plan(0)  # raise here, not in a worker

    def plan(self, epoch: int) -> PackingPlan:
        """The plan of an epoch."""
        return self._epoch(epoch)[1]

    def fill(self, epoch: int = 0) -> dict[str, float]:
        """The used share of the rows' images, slots and targets; see `PackingPlan.fill`."""
        samples, plan = self._epoch(epoch)
        return plan.fill(self._usage(samples), self.size)

    def windows_of(self, epoch: int, number: int) -> list[tuple[int, int]]:
        """Domain and window of each segment of a row, in order."""
        samples, plan = self._epoch(epoch)
        return [(int(samples.domain_N[i]), int(samples.window_N[i])) for i in plan.row(number)]

    def row(self, epoch: int, number: int) -> Row:
        """A row, decoded and laid out."""
        samples, plan = self._epoch(epoch)
        windows = [self.windows[samples.domain_N[i]].read(int(samples.window_N[i]), int(samples.domain_epoch_N[i]))
                   for i in plan.row(number)]
        return lay_out(windows, self.size, self.visual_tokens, self._patches)

    def unweighted(self) -> PackedRows:
        """The same rows with every window once an epoch, regardless of the domains' weights."""
        if all(weight == 1 for weight in self._weights):
            return self
        other = copy.copy(self)
        other._weights, other._epochs = [1.0] * len(self._weights), {}
        return other

    def blank(self) -> Row:
        """A row without weight."""
        return blank_row(self.size)

    def _usage(self, samples: Epoch) -> np.ndarray:
        """int64 (samples, 3): images, slots and targets of each."""
        usage_N3 = np.zeros((len(samples.domain_N), 3), np.int64)
        for domain, windows in enumerate(self.windows):
            of_domain = samples.domain_N == domain
            if windows.domain.sampling != "random":
                usage_N3[of_domain] = self._first_usage[domain][samples.window_N[of_domain]]
                continue
            for epoch in np.unique(samples.domain_epoch_N[of_domain]).tolist():
                of_epoch = of_domain & (samples.domain_epoch_N == epoch)
                usage_N3[of_epoch] = windows.usage(self.visual_tokens, epoch)[samples.window_N[of_epoch]]
        return usage_N3

    def _exclusive(self, samples: Epoch) -> np.ndarray:
        """bool (samples,): whether each needs a row of its own, since a row has one label."""
        return np.asarray([windows.domain.layout == "label" for windows in self.windows])[samples.domain_N]

    def _epoch(self, epoch: int) -> tuple[Epoch, PackingPlan]:
        planned = self._epochs.get(epoch)
        if planned is None:
            samples = epoch_samples(self.counts, self._weights, epoch, self._seed)
            planned = samples, plan_rows(self._usage(samples), self.size, (self._seed, epoch),
                                         exclusive_N=self._exclusive(samples))
            # Prefetched batches reach into two epochs at most; keep three, so that none is planned twice.
            self._epochs = {**dict(list(self._epochs.items())[-2:]), epoch: planned}
        return planned  # not looked up again: another thread may have replaced the dict


class _Batches:
    """Grain's data source: this process's part of each global batch from a position on, without end.

    An element is a whole batch, because grain's cost per element is high next to reading one row. It holds the position
    after the batch as well.
    """

    def __init__(self, rows: PackedRows, batch_size: int, process_index: int, process_count: int, epoch: int, row: int):
        self._rows, self._batch_size = rows, batch_size
        self._local, self._process_index = batch_size // process_count, process_index
        self._first_epoch = epoch
        self._starts = [-row]  # offset of each epoch's row 0, from the first epoch on

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Row:
        first = index * self._batch_size + self._process_index * self._local
        batch = stack([self._rows.row(*self._locate(offset)) for offset in range(first, first + self._local)])
        return {**vars(batch), "position": np.asarray(self._locate((index + 1) * self._batch_size))}

    def _locate(self, offset: int) -> tuple[int, int]:
        """Epoch and row at `offset` rows after the first position."""
        starts = self._starts  # replaced, never changed in place: another thread may be reading it
        while offset >= (end := starts[-1] + len(self._rows.plan(self._first_epoch + len(starts) - 1))):
            starts = [*starts, end]
        self._starts = starts
        number = bisect.bisect_right(starts, offset) - 1
        return self._first_epoch + number, offset - starts[number]


class Loader:
    """An endless iterator of (Batch, state): this process's part of each global batch, prefetched."""

    def __init__(self, rows: PackedRows, batch_size: int, *, process_index: int = 0, process_count: int = 1,
                 workers: int = 0, prefetch: int = 4, state: Mapping[str, Any] | None = None):
        """Begin at `state`, or at the first row.

        Args:
            rows: of the run.
            batch_size: rows of a global batch.
            process_index: index of this process.
            process_count: processes that share each batch.
            workers: processes that decode; 0: threads of this process. Workers are spawned, so the program needs a
                `__main__` guard.
            prefetch: batches made ahead.
            state: the one returned with the last batch before these, by any number of processes.

        Raises:
            ValueError: the batch does not divide among the processes, or the state belongs to other data.
        """
        if batch_size % process_count:
            raise ValueError(f"batch_size={batch_size} rows must divide among {process_count} processes")
        state = _checked_state(state or {"rows": 0, "epoch": 0, "row": 0, "windows": rows.counts}, rows)
        self._batch_size, self._counts = batch_size, rows.counts
        self._rows = state["rows"]
        source = _Batches(rows, batch_size, process_index, process_count, state["epoch"], state["row"])
        dataset: Any = grain.MapDataset.source(source)
        threads = min(1 if workers else _THREADS, prefetch)
        reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=0 if workers else prefetch)
        dataset = dataset.to_iter_dataset(reading)
        if workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain reads its flags to start workers, also outside absl.app
            ahead = max(1, -(-prefetch // workers))
            options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ahead)
            dataset = dataset.mp_prefetch(options)
        self._iterator = iter(dataset)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[Batch, State]:
        """The next batch, and the state that continues after it."""
        fields = dict(next(self._iterator))
        epoch, row = fields.pop("position").tolist()
        self._rows += self._batch_size
        return Batch(**fields), {"rows": self._rows, "epoch": epoch, "row": row, "windows": list(self._counts)}

    def close(self) -> None:
        """Stop threads and worker processes."""
        self._iterator.close()


def validation_batches(rows: PackedRows, batch_size: int, count: int = 0, *, process_index: int = 0,
                       process_count: int = 1) -> Iterator[Batch]:
    """This process's part of the first `count` global batches (0: all) of one pass, in an order that never changes.

    Every window is seen once, regardless of its domain's weight in training. The seed of `rows` shuffles the order, so
    the first batches are a fair sample of the split. Rows beyond the last are padding of weight 0, so that all
    processes get equally many batches of the same shapes.

    Raises:
        ValueError: the batch does not divide among the processes.
    """
    if batch_size % process_count:
        raise ValueError(f"batch_size={batch_size} rows must divide among {process_count} processes")
    rows = rows.unweighted()
    total = len(rows.plan(0))
    batches = -(-total // batch_size)
    local = batch_size // process_count
    for batch in range(min(count, batches) if count else batches):
        first = batch * batch_size + process_index * local
        yield stack([rows.row(0, number) if number < total else rows.blank() for number in range(first, first + local)])


def _checked_state(state: Mapping[str, Any], rows: PackedRows) -> State:
    missing = [name for name in ("rows", "epoch", "row", "windows") if name not in state]
    if missing:
        raise ValueError(f"data state: missing {', '.join(missing)}; found {sorted(state)}. The checkpoint was written "
                         "by another version")
    if list(state["windows"]) != rows.counts:
        raise ValueError(f"data state: found {list(state['windows'])} windows in the checkpoint, expected "
                         f"{rows.counts} as in the data sets; continue with the data, windows and strides of the "
                         "checkpoint, or start a new workdir")
    return dict(state)
