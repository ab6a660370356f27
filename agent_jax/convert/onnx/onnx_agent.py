"""The agent with onnxruntime, in one file: acts and answers with an exported folder, without JAX and PyTorch.

    policy = Policy(FOLDER)
    policy.act(images, ["push the red block"], ["robot 0"])    # [{"action": array([0.0015, -0.0285])}]
    policy.say([clip], ["what happens?"])                      # [GeneratedText(text="the door opens", ...)]
    policy.classify([clip])                                    # [Classification(label=2, ...)]

Needs onnxruntime, numpy, tokenizers, pillow. The folder:

    manifest.json       precision, oldest onnxruntime, and the hash of every file, which is checked
    agent.json          sizes, domains (with actions: their ActionSpec), preprocessing
    language/           the tokenizer
    encoder.onnx        images to visual tokens
    language.onnx       rows of tokens and visual tokens to logits, with a KV cache

Dimensions: B rows, C slots to be read, Z slots of a cache, G visual tokens of a row, A ids whose logits are wanted,
F images, V visual tokens of an image, D model width, N heads, H wide.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from agent_jax.convert.exported.network import Episode
from agent_jax.convert.exported.policy import ExportedPolicy
from agent_jax.convert.exported.row import Row

FORMAT = 1  # of manifest.json
# Slots that are read at once at most: a longer row takes less time and memory in parts, of which none sees those after.
CHUNK = 512


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The content of manifest.json, after a check of the folder's files.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: another format, a file that was changed, or an onnxruntime that is too old.
    """
    folder = Path(folder)
    if not (folder / "manifest.json").is_file():
        raise FileNotFoundError(f"{folder}: found no manifest.json; expected a folder of `agent_jax.convert to-onnx`")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{folder / 'manifest.json'}: format {manifest.get('format')!r}, expected {FORMAT}")
    if release(onnxruntime.__version__) < release(manifest["onnxruntime"]):
        raise ValueError(f"{folder}: found onnxruntime {onnxruntime.__version__}, expected {manifest['onnxruntime']} "
                         f"or later for its {manifest['precision']} graphs of opset {manifest['opset']}; update it")
    for name, expected in manifest["files"].items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing; export the folder again")
        if file_hash(folder / name) != expected:
            raise ValueError(f"{folder / name}: its SHA-256 is not that of manifest.json, so the file was changed or "
                             "damaged; export the folder again")
    return manifest


def release(version: str) -> list[int]:
    """The first two numbers of a version, to compare."""
    return [int(number) for number in re.findall(r"\d+", version)[:2]]


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Policy(ExportedPolicy):
    """Acts, answers and classifies with the graphs of a folder."""

    def __init__(self, folder: str | Path, *, domain: str = "", temperature: float = 0.0, seed: int = 0,
                 history: str = "sliding", flush_every: int = 0, threads: int = 0):
        """Check and load a folder.

        Args:
            folder: exported, with manifest.json.
            domain: to act, answer or classify in; may be empty if there is at most one to act in.
            temperature: of sampling among the legal ids of actions; 0: greedy.
            seed: of sampling actions.
            history: "sliding": the last steps of the window are read again for every action, as in training.
                "flushed": only what is new is read, and the history is dropped every `flush_every` steps.
            flush_every: 0: the domain's window. Flushed history only.
            threads: of onnxruntime; 0: one for each core.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file was changed, an onnxruntime that is too old, no such domain, or a history that does not
                fit it.
        """
        self.manifest = read_manifest(folder)
        description = json.loads((Path(folder) / "agent.json").read_text(encoding="utf-8"))
        super().__init__(folder, description, domain=domain, temperature=temperature, seed=seed)
        if history not in ("sliding", "flushed") or (flush_every and history == "sliding"):
            raise ValueError(f"history={history!r}, flush_every={flush_every}: expected 'sliding' without "
                             "flush_every, or 'flushed'")
        if history == "flushed":
            self.flush_at(flush_every or self.domain.window)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Waiting threads sleep: where another program runs as well, one that spins keeps the other from working.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        sessions: Any = [
            onnxruntime.InferenceSession(str(Path(folder) / f"{part}.onnx"), options, ["CPUExecutionProvider"])
            for part in ("encoder", "language")]
        self._encoder, self._language = sessions
        self._depth = description["config"]["model"]["language"]["depth"]
        self._cached = [one.name for one in self._language.get_inputs() if one.name.startswith("past_")]
        self._heads, _, self._wide = self._language.get_inputs()[-1].shape[1:]
        self._encoder_inputs = {one.name for one in self._encoder.get_inputs()}
        self._width = description["config"]["model"]["language"]["width"]

    def _encoder_run(self, output: str, frames_BFHWC: np.ndarray, clip_BF: np.ndarray) -> np.ndarray:
        inputs = {"frames_BFHWC": np.ascontiguousarray(frames_BFHWC), "clip_BF": clip_BF.astype(np.int64)}
        return self._encoder.run([output], {name: inputs[name] for name in self._encoder_inputs})[0]

    def _tokens(self, frames_BFHWC: np.ndarray, clip_BF: np.ndarray) -> np.ndarray:
        return self._encoder_run("visual_BFVD", frames_BFHWC, clip_BF)

    def _probabilities(self, frames_BFHWC: np.ndarray, clip_BF: np.ndarray) -> np.ndarray:
        return self._encoder_run("probability_BY", frames_BFHWC, clip_BF)

    def _read(self, rows: Sequence[Row], ids: np.ndarray, room: int, episodes: Sequence[Episode] = ()
              ) -> Generator[np.ndarray, Sequence[Sequence[int]], None]:
        used = [episode.used for episode in episodes] or [0] * len(rows)
        whole = max(len(position_S) for _, position_S in rows) + room
        cache = self._joined(episodes, whole) if episodes else None
        pieces = [_slots(*row, first) for row, first in zip(rows, used, strict=True)]
        visual = [np.concatenate(found) if found else np.zeros((1, self._width), np.float32)
                  for *_, found in pieces]
        visual_BGD = _padded(visual)
        token_BC, visual_BC, position_BC = (_padded([np.asarray(row[part], np.int64) for row in pieces])
                                            for part in range(3))
        count = [len(row[0]) for row in pieces]
        following = [int(position_S[-1]) + 1 for _, position_S in rows]
        new: list[np.ndarray] = []
        while True:
            slots, ending, logits_BA = token_BC.shape[1], np.array(count), np.zeros((len(rows), len(ids)), np.float32)
            size = math.ceil(slots / math.ceil(slots / CHUNK))
            if cache is None and slots > size:
                cache = self._zeros(len(rows), whole)
            for first in range(0, slots, size):
                here = slice(first, first + size)
                count = np.clip(ending - first, 0, size).tolist()
                ends_B = (ending > first) & (ending <= first + size)
                past = cache or self._zeros(len(rows), 1)
                if slots > size:  # a copy, which is cheaper than attention to what is not there yet
                    past = [part[:, :, : max(1, *used)] for part in past]
                found_BA, *new = self._language.run(None, {
                    "token_BC": token_BC[:, here], "visual_BC": visual_BC[:, here], "visual_BGD": visual_BGD,
                    "position_BC": position_BC[:, here], "last_B": np.maximum(np.array(count, np.int64) - 1, 0),
                    "ids_A": np.asarray(ids if ends_B.any() else ids[:1], np.int64),
                    "visible_BZ": np.arange(past[0].shape[2]) < np.array(used)[:, None],
                    **dict(zip(self._cached, past, strict=True))})
                logits_BA[ends_B] = found_BA[ends_B]
                if first + size < slots:
                    used = _written(cache, new, used, count)
            if episodes:  # before the action, so that the row is kept without it
                used = _written(cache, new, used, count)
                for number, episode in enumerate(episodes):
                    assert cache is not None
                    episode.cache, episode.used = [part[number : number + 1] for part in cache], used[number]
                episodes, new = (), []
            pending = yield logits_BA
            if cache is None:
                cache = self._zeros(len(rows), whole)
            if new:
                used = _written(cache, new, used, count)
            count = [len(more) for more in pending]
            token_BC = _padded([np.array(more, np.int64) for more in pending])
            position_BC = np.array(following)[:, None] + np.arange(token_BC.shape[1])
            position_BC[np.arange(token_BC.shape[1]) >= np.array(count)[:, None]] = 0
            following = [place + more for place, more in zip(following, count, strict=True)]
            visual_BC, visual_BGD = np.full_like(token_BC, -1), np.zeros((len(rows), 1, self._width), np.float32)

    def _zeros(self, rows: int, slots: int) -> list[np.ndarray]:
        """An empty KV cache."""
        return [np.zeros((rows, self._heads, slots, self._wide), np.float32) for _ in self._cached]

    def _joined(self, episodes: Sequence[Episode], whole: int) -> list[np.ndarray]:
        """The caches of episodes as one, with at least `whole` slots; that of one episode is not copied."""
        if len(episodes) == 1 and episodes[0].cache and episodes[0].cache[0].shape[2] >= whole:
            return episodes[0].cache
        # Twice as long as needed now: a row that grows is copied seldom.
        cache = self._zeros(len(episodes), 2 * whole)
        for number, episode in enumerate(episodes):
            for part, old in zip(cache, episode.cache or (), strict=False):
                part[number, :, : episode.used] = old[0, :, : episode.used]
        return cache


def _slots(pieces: Sequence[Any], position_S: np.ndarray, first: int
           ) -> tuple[list[int], list[int], np.ndarray, list[np.ndarray]]:
    """Slots of a row from `first` on: ids, indices of visual tokens (-1: an id), positions; and the visual tokens."""
    token: list[int] = []
    visual: list[int] = []
    found: list[np.ndarray] = []
    number = 0
    for piece in pieces:
        if isinstance(piece, list):
            token, visual = token + piece, visual + [-1] * len(piece)
            continue
        token, visual = token + [0] * len(piece), visual + list(range(number, number + len(piece)))
        if len(token) > first:
            found, number = [*found, piece], number + len(piece)
    return token[first:], visual[first:], position_S[first:], found


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of different lengths as one array, filled with zeros at their end."""
    full = np.zeros((len(rows), max(map(len, rows)), *rows[0].shape[1:]), rows[0].dtype)
    for place, row in zip(full, rows, strict=True):
        place[: len(row)] = row
    return full


def _written(cache: Any, new: Sequence[np.ndarray], used: Sequence[int], count: Sequence[int]) -> list[int]:
    """Write `count` new slots of each row behind those used; returns how many are used then."""
    for whole, part in zip(cache, new, strict=True):
        for row, (first, more) in enumerate(zip(used, count, strict=True)):
            whole[row, :, first : first + more] = part[row, :, :more]
    return [first + more for first, more in zip(used, count, strict=True)]


def main(folder: str) -> None:
    """Predict once in each domain, on random images, to test the folder."""
    random = np.random.default_rng(0)
    description = json.loads((Path(folder) / "agent.json").read_text(encoding="utf-8"))
    for name in [*description["acting"], *description.get("prompted", {})]:
        policy = Policy(folder, domain=name)
        domain = policy.domain
        images = list(random.integers(0, 256, (len(domain.cameras), domain.image_size, domain.image_size, 3), np.uint8))
        if domain.actions is not None:
            states = [domain.state.decode(domain.state.first())] if domain.state else None
            print(f"{name}: an action {policy.act([images], ['go'], ['robot 0'], states)}")
        elif domain.layout == "answer":
            print(f"{name}: an answer {policy.say([[images]], ['a'])}")
        else:
            print(f"{name}: a class {policy.classify([[images]])}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("expected one argument: the exported folder")
    main(sys.argv[1])
