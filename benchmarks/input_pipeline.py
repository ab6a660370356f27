"""Frames a second from files to batches of 224 pixels: our loader, PyTorch's DataLoader, tf.data, in one run.

    python benchmarks/input_pipeline.py [--data DIR] [--processes 2] [--json PATH]

DIR is a Language-Table set (RLDS, array_record); without it a synthetic set of the same schema is made, with images
whose JPEGs are as large as that set's. All three read windows of four frames from the same records, decode
every JPEG and resize it to 224 x 224 with antialiasing; ours lays out whole rows of a run besides. PyTorch decodes and
resizes with Pillow, tf.data with TensorFlow's own kernels from a TFRecord copy. A library that is missing is named.
The ways take turns, `--rounds` times, and the best round of each counts: other programs only ever make one slower.
Rates "a core" are by processor time, so they hardly depend on what else the machine does.

Then the memory of our loader over an epoch of a set that is larger than what the process may allocate (--copies 0
leaves it out), and what a chip would need. benchmarks/results/ has what was measured.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe, write_json
from PIL import Image

from agent_jax.actions import LANGUAGE_TABLE, LANGUAGE_TABLE_STATE
from agent_jax.config import Config, DomainConfig, from_config_dict, presets, to_config_dict
from agent_jax.data.pipeline.loader import Loader
from agent_jax.data.pipeline.run_data import open_data
from agent_jax.data.store.store import open_store
from agent_jax.data.store.tfds_features import read_features
from agent_jax.data.store.writer import (
    ShardWriter,
    begin_store,
    episode_features,
    finish_store,
    shard_path,
    write_store,
)
from agent_jax.json_files import json_path

WINDOW, SIZE, BATCH = 4, 224, 16  # frames of a window, pixels, windows of a batch
FORWARD_FLOPS = 41e9  # of the full-size agent, a frame
TRAINING = 3  # forward and backward, in forward passes
MFU = 0.4  # assumed: the share of a chip's peak that a well-tuned step reaches
# Peak bfloat16 FLOP/s without sparsity (data sheets), and host cores of one chip: 8 H100 beside 112 (DGX H100), 4 v4
# chips beside 240 virtual ones (Cloud TPU).
CHIPS = {"H100": (989e12, 14), "TPU v4": (275e12, 60)}
CAP = 256_000_000  # bytes that the memory test may allocate beyond what it has when it begins to read
IMAGE, ACTION = "steps/observation/rgb", "steps/action"
SYNTHETIC_SHAPE, SYNTHETIC_STEPS = (180, 320, 3), 40  # an image, and steps of an episode, as in Language-Table


def synthetic_set(directory: Path, episodes: int) -> Path:
    """A set in the schema of Language-Table: smooth random images, random actions and states."""
    random = np.random.default_rng(0)
    observations = {**LANGUAGE_TABLE_STATE.fields, "instruction": ((512,), np.int32)}
    features = episode_features(SYNTHETIC_SHAPE, LANGUAGE_TABLE.fields, observations, "jpeg")
    text = np.pad(np.frombuffer(b"push the red star to the blue cube", np.uint8), (0, 478)).astype(np.int32)

    def step(number: int) -> dict[str, Any]:
        coarse = Image.fromarray(random.integers(0, 256, (3, 5, 3), np.uint8))  # 8 KB as a JPEG
        image = np.asarray(coarse.resize(SYNTHETIC_SHAPE[1::-1], Image.Resampling.BICUBIC))
        state = {key: random.uniform(0.2, 0.3, shape).astype(kind)
                 for key, (shape, kind) in LANGUAGE_TABLE_STATE.fields.items()}
        return {"observation": {"rgb": image, "instruction": text, **state}, "action_weight": 1.0, "reward": 0.0,
                "action": random.uniform(-0.03, 0.03, 2).astype(np.float32), "is_first": number == 0,
                "is_last": number == SYNTHETIC_STEPS - 1, "is_terminal": number == SYNTHETIC_STEPS - 1}

    records = ({"episode_id": f"{episode}", "recording_id": f"{episode}", "start": 0, "instruction": "",
                "steps": [step(number) for number in range(SYNTHETIC_STEPS)]} for episode in range(episodes))
    return write_store(directory / "synthetic", "synthetic", features, {"train": records}, {}).directory


def run_config(data: Path, stride: int) -> Config:
    """The agent at its full size on Language-Table; its instructions as bytes."""
    draft: presets.Draft = to_config_dict(Config()).unlock()
    domain = DomainConfig(path=str(data), instruction="steps/observation/instruction", window=WINDOW, stride=stride,
                          max_text=96, action_spec=LANGUAGE_TABLE.to_dict(), state_spec=LANGUAGE_TABLE_STATE.to_dict(),
                          validation_split="train")
    draft.data.domains = {"language_table": to_config_dict(domain).unlock()}
    return from_config_dict(draft)


def rate(batches: Iterator[int], seconds: float) -> tuple[float, float]:
    """Frames a second, and frames a second of this process's processor time, all its threads together.

    The first batches, which start processes and fill buffers, do not count.
    """
    for _ in range(4):
        next(batches)
    begun, used, frames = time.perf_counter(), time.process_time(), 0
    while (taken := time.perf_counter() - begun) < seconds:
        frames += next(batches)
    return frames / taken, frames / (time.process_time() - used)


def ours(data: Path, workers: int) -> Iterator[int]:
    """Frames of each batch of our loader."""
    loader = Loader(open_data(run_config(data, WINDOW)).train, BATCH, workers=workers)
    try:
        for batch, _ in loader:
            yield int((np.asarray(batch.frame_weight_BF) > 0).sum())
    finally:
        loader.close()


class TorchWindows:
    """A map-style data set for PyTorch: the same windows, decoded and resized by Pillow."""

    def __init__(self, data: Path):
        """Of a data set's directory."""
        self._split = open_store(data).split("train")
        lengths = [self._split[number].steps for number in range(len(self._split))]
        self._windows = [(number, start) for number, length in enumerate(lengths)
                         for start in range(0, length - WINDOW + 1, WINDOW)]

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        import torch

        number, start = self._windows[index]
        episode = self._split[number]
        encoded = episode.values(IMAGE, start, start + WINDOW)
        pictures = [Image.open(io.BytesIO(image)).convert("RGB") for image in encoded]
        images = [np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BILINEAR)) for picture in pictures]
        actions = np.array(episode.values(ACTION, start, start + WINDOW))
        return torch.from_numpy(np.stack(images)), torch.from_numpy(actions)


def pytorch(data: Path, workers: int) -> Iterator[int]:
    """Frames of each batch of PyTorch's DataLoader."""
    import torch

    torch.set_num_threads(1)
    windows: Any = TorchWindows(data)
    loader = torch.utils.data.DataLoader(windows, BATCH, shuffle=True, num_workers=workers, drop_last=True,
                                         persistent_workers=workers > 0,
                                         multiprocessing_context="spawn" if workers else None)
    while True:
        for images, _ in loader:
            yield images.shape[0] * images.shape[1]


def tfrecord_copy(data: Path, directory: Path) -> Path:
    """The training records as TFRecord."""
    from tensorboardX.record_writer import RecordWriter

    path = directory / "train.tfrecord"
    writer = RecordWriter(str(path))
    split = open_store(data).split("train")
    for number in range(len(split)):
        writer.write(split.serialized(number))
    writer.close()
    return path


def tf_data(path: Path) -> Iterator[int]:
    """Frames of each batch of tf.data, which chooses its number of threads."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    fields = {IMAGE: tf.io.RaggedFeature(tf.string), ACTION: tf.io.RaggedFeature(tf.float32)}

    def windows(serialized: Any) -> Any:
        parsed = tf.io.parse_single_example(serialized, fields)
        count = tf.size(parsed[IMAGE]) // WINDOW
        images = tf.reshape(parsed[IMAGE][: count * WINDOW], (count, WINDOW))
        actions = tf.reshape(parsed[ACTION][: count * WINDOW * 2], (count, WINDOW, 2))
        return tf.data.Dataset.from_tensor_slices((images, actions))

    def decoded(images: Any, actions: Any) -> Any:
        def one(image: Any) -> Any:
            pixels = tf.image.resize(tf.io.decode_jpeg(image, 3), (SIZE, SIZE), antialias=True)
            return tf.cast(tf.round(pixels), tf.uint8)

        return tf.map_fn(one, images, fn_output_signature=tf.TensorSpec((SIZE, SIZE, 3), tf.uint8)), actions

    dataset = tf.data.TFRecordDataset(str(path)).repeat().flat_map(windows).shuffle(500)
    dataset = dataset.map(decoded, tf.data.AUTOTUNE).batch(BATCH).prefetch(tf.data.AUTOTUNE)
    return (images.shape[0] * images.shape[1] for images, _ in dataset)


def measure(ways: dict[str, Callable[[], Iterator[int]]], rounds: int, seconds: float) -> dict[str, Any]:
    """The best rate of each way over all rounds, by the clock and, where it is one process, by its processor time.

    The latter hardly depends on what else runs. In place of figures, the reason where a library is missing.
    """
    found: dict[str, Any] = {}
    for turn, (name, way) in itertools.product(range(rounds), ways.items()):
        try:
            batches = way()
            measured, by_core = rate(batches, seconds)
        except ModuleNotFoundError as error:
            found[name] = {"missing": error.name}
            continue
        if hasattr(batches, "close"):
            batches.close()
        best = found.setdefault(name, {"frames_per_s": 0.0, "frames_per_core_s": 0.0})
        best["frames_per_s"] = max(best["frames_per_s"], measured)
        if "processes" not in name:
            best["frames_per_core_s"] = max(best["frames_per_core_s"], by_core)
        now = {"frames_per_s": measured, "frames_per_core_s": by_core}
        print(f"  round {turn + 1}, {_said(name, now)}", flush=True)
    return found


def _said(name: str, figures: dict[str, Any]) -> str:
    if "missing" in figures:
        return f"{name}: {figures['missing']} is not installed"
    by_core = figures["frames_per_core_s"] if "processes" not in name else 0
    return f"{name}: {figures['frames_per_s']:,.0f} frames/s" + (f", {by_core:,.0f} a core" if by_core else "")


def larger_copy(data: Path, directory: Path, copies: int) -> Path:
    """A set with the training records several times over, in as many shards."""
    store = open_store(data)
    split, out, features = store.split("train"), directory / "large", read_features(data)
    build = begin_store(out, {})
    for copy in range(copies):
        with ShardWriter(shard_path(build, "large", "train", copy, copies), features) as writer:
            for number in range(len(split)):
                writer.write_serialized(split.serialized(number))
    finish_store(out, "large", features)
    return out


def _size(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.iterdir())


def resident() -> dict[str, float]:
    """MB in memory: of one's own, and pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = {line.partition(":")[0]: line.split()[1] for line in lines if line.startswith(("Rss", "VmRSS", "VmData"))}
    return {name: int(value) * 1024 / 1e6 for name, value in values.items()}


def watch_memory(data: Path) -> dict[str, Any]:
    """One epoch through our loader, every record read; memory at twenty places of it."""
    rows = open_data(run_config(data, 40)).train
    total = len(rows.plan(0)) // BATCH
    if not total:
        raise SystemExit(f"--data {data}: found fewer than {BATCH} rows, expected a batch at least")
    first = min(4, total - 1)  # batches before it fill the buffers
    loader = Loader(rows, BATCH)
    curve = []
    for number, _ in zip(range(total), loader, strict=False):
        if number == first:
            limit = int(resident()["VmData"] * 1e6) + CAP
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        if number >= first and (number - first) % max(1, (total - first - 1) // 19) == 0:
            curve.append({"batch": number, **resident()})
    loader.close()
    return {"batches": total, "curve": curve}


def memory(data: Path, directory: Path, copies: int) -> dict[str, Any]:
    """`watch_memory` in a process of its own, on a set larger than what that may allocate."""
    large = larger_copy(data, directory, copies)
    size = _size(large)
    line = [sys.executable, __file__, "--data", str(large), "--watch_memory"]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True,
                          env={**os.environ, "AGENT_JAX_CACHE": str(directory / "cache")})
    return {"set_bytes": size, "cap_bytes": CAP, **json.loads(done.stdout.splitlines()[-1])}


def needs(per_core: float) -> dict[str, dict[str, float]]:
    """What each chip trains on in a second, and what the cores beside it would deliver."""
    return {name: {"needed": peak * MFU / (FORWARD_FLOPS * TRAINING), "predicted": per_core * cores, "cores": cores}
            for name, (peak, cores) in CHIPS.items()}


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="directory of a Language-Table set")
    parser.add_argument("--episodes", type=int, default=64, help="of the synthetic set; at least 2")
    parser.add_argument("--json", type=json_path, help="also write the figures here")
    parser.add_argument("--seconds", type=float, default=6, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2, help="of ours and of PyTorch's loader, beside none")
    parser.add_argument("--copies", type=int, default=20,
                        help="how many times larger the set of the memory test is; 0: no memory test")
    parser.add_argument("--watch_memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watch_memory:
        print(json.dumps(watch_memory(options.data)))
        return
    if options.episodes < 2:
        parser.error(f"--episodes: found {options.episodes}, expected at least 2, which make a batch")
    machine = describe(accelerators=False)
    with tempfile.TemporaryDirectory() as temporary:
        data = options.data or synthetic_set(Path(temporary), options.episodes)
        if not options.data:
            print(f"a synthetic set of {options.episodes} episodes of {SYNTHETIC_STEPS} images, "
                  f"{_size(data) / 1e6:,.0f} MB")
        copy = tfrecord_copy(data, Path(temporary))
        ways: dict[str, Callable[[], Iterator[int]]] = {
            "ours": lambda: ours(data, 0),
            f"ours, {options.processes} processes": lambda: ours(data, options.processes),
            "PyTorch": lambda: pytorch(data, 0),
            f"PyTorch, {options.processes} processes": lambda: pytorch(data, options.processes),
            "tf.data": lambda: tf_data(copy),
        }
        rates = measure(ways, options.rounds, options.seconds)
        used = memory(data, Path(temporary), options.copies) if options.copies else None
    figures = {"window": WINDOW, "size": SIZE, "synthetic": not options.data, "rates": rates,
               "memory": used, "chips": needs(rates["ours"]["frames_per_core_s"])}
    for name, value in rates.items():
        print(_said(name, value))
    if used:
        curve = used["curve"]
        places = {"start": curve[0], "middle": curve[len(curve) // 2], "end": curve[-1]}
        print(f"memory, a set of {used['set_bytes'] / 1e6:,.0f} MB, {used['cap_bytes'] / 1e6:,.0f} MB to allocate: "
              + ", ".join(f"{name} {place['RssAnon']:,.0f} MB (and {place['RssFile']:,.0f} MB of files)"
                          for name, place in places.items()))
    for name, chip in figures["chips"].items():
        print(f"{name}: needs {chip['needed']:,.0f} frames/s at {MFU:.0%} of its peak; {chip['cores']} cores beside it "
              f"would deliver {chip['predicted']:,.0f}")
    if options.json:
        write_json(options.json, machine, figures)


if __name__ == "__main__":
    main()
