"""What reads files of others, each with a small honest set of files and the call that reads all of it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import bleeding_edge_clips
import calvin_sets
import cines
import gamepads
import hdf5_demonstrations
import lerobot_sets
import numpy as np
import rlds_sets
import videos
import vpt_pairs
from data_stores import arm_store, babyai_domain, babyai_store
from etils import epath

from agent_jax.actions import LANGUAGE_TABLE, MINECRAFT, ActionSpec
from agent_jax.actions.text_tokenizer import load_tokenizer
from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.checkpoints import meta as checkpoint_meta
from agent_jax.checkpoints.meta import DamagedCheckpointError
from agent_jax.client import wire
from agent_jax.config import presets
from agent_jax.convert.huggingface.weights_folder import open_folder
from agent_jax.data.images import encode_jpeg, encode_png, prepare_image
from agent_jax.data.prepare.config import PrepareConfig, read_prepare_config
from agent_jax.data.prepare.sources import open_source
from agent_jax.data.store.store import open_store
from agent_jax.json_files import read_json_object
from agent_jax.serve.limits import ActionLimits
from agent_jax.serve.requests import read_request
from agent_jax.train.metrics import MetricsLog


@dataclasses.dataclass(frozen=True)
class Reader:
    """Honest files, and how all of them is read."""

    make: Callable[[Path], Any]  # writes them into a folder
    read: Callable[[Path], Any]
    suffixes: tuple[str, ...] = ("",)  # of the files that are damaged; "": all
    errors: tuple[type[Exception], ...] = (ValueError, OSError)  # the reader's own error
    names_file: bool = True  # whether its message must name the file or its folder

    def files(self, folder: Path) -> list[str]:
        """Paths of the files that are damaged, relative to the folder."""
        return sorted(str(file.relative_to(folder)) for file in folder.rglob("*")
                      if file.is_file() and file.name.endswith(self.suffixes))

    def named(self, message: str, names: Sequence[str]) -> bool:
        """Whether the message names one of them, where it must, or the field of the config that no longer fits."""
        return not self.names_file or any(name in message for name in (*names, "config."))


def _source(kind: str, path: str = "", recordings: int | None = None, **config: Any) -> Callable[[Path], Any]:
    """Read the recordings of a source, or the first of them where each takes long."""

    def read(folder: Path) -> None:
        source = open_source(kind, folder / path, PrepareConfig(**config))
        for recording in source.recordings()[:recordings]:
            list(source.files(recording))
            for episode in source.read(recording):
                for step in episode.steps:
                    for image in step.images.values():
                        _decode(image, recording.where)

    return read


def _decode(image: bytes | np.ndarray, where: str) -> None:
    """As `prepare` does, which names the recording."""
    try:
        prepare_image(image, 16)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _read_store(folder: Path) -> None:
    store = open_store(folder / "store")
    for split in store.splits:
        for episode in store.split(split):
            for path, field in store.fields.items():
                episode.values(path, 0, episode.steps) if field.per_step else episode.value(path)


def _read_specs(folder: Path) -> None:
    content = read_json_object(folder / "specs.json")
    for name in sorted(content):
        try:
            ActionSpec.from_dict(content[name])
        except ValueError as error:
            raise ValueError(f"specs.json: {error}") from error


def _write_specs(folder: Path) -> None:
    arm = presets.arm_spec("arm", names=("dx", "grip"), low=(-1, 0), high=(1, 5))
    (folder / "specs.json").write_text(json.dumps({
        "arm": arm, "minecraft": MINECRAFT.to_dict(), "table": LANGUAGE_TABLE.to_dict()}))


def _write_images(folder: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    (folder / "a.jpg").write_bytes(encode_jpeg(image))
    (folder / "a.png").write_bytes(encode_png(image))


def _read_images(folder: Path) -> None:
    for name in ("a.jpg", "a.png"):
        try:
            prepare_image((folder / name).read_bytes(), 16)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def _write_calvin(folder: Path) -> None:
    for name, first in (("training", 10), ("validation", 100)):
        place = folder / "c" / name
        place.mkdir(parents=True)
        np.save(place / "ep_start_end_ids.npy", np.asarray([(first, first + 3)]))
        for number in range(first, first + 4):
            calvin_sets.save_step(place, number)
        calvin_sets.save_annotations(place, [(first, first + 3, "push the red block")])
        (place / "statistics.yaml").write_text("robot_obs:\n  - _target_: transforms.NormalizeVector\n"
                                               f"    mean: {calvin_sets.MEAN}\n"
                                               f"    std: {calvin_sets.STD}\n")


def _write_video_texts(folder: Path) -> None:
    videos.write_video(folder / "a.mp4", 8)
    (folder / "texts.csv").write_text("file,caption\na.mp4,a dog runs\n")


def _write_cine_texts(folder: Path) -> None:
    cines.grey_cine(folder / "a.dcm", frames=8)
    (folder / "texts.jsonl").write_text('{"file": "a.dcm", "caption": "a heart", "start": 0.0}\n')


def _write_weights(kind: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        import random_huggingface

        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                 "image_size": 16, "patch_size": 8}
        random_huggingface.save_vision(folder / "clip", **sizes)
        if kind == "torch":
            random_huggingface.to_pytorch_files(folder / "clip", shards=2)

    return write


def _read_weights(folder: Path) -> None:
    with open_folder(folder / "clip") as weights:
        for name in weights.shapes:
            weights.read(name)


def _write_export(folder: Path) -> None:
    from exported_agents import exported

    (folder / "made").mkdir()
    shutil.copytree(exported(folder / "made", "images")[1], folder / "export")
    shutil.rmtree(folder / "made")


def _read_export(folder: Path) -> None:
    from agent_jax.checkpoints.exported.folder import read_folder

    read_folder(folder / "export")


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokens = ["<s>", "<pad>", "</s>", "<unk>", *"abcdefgh", "ab", "cd"]
    letters = {letter: number for number, letter in enumerate(tokens)}
    (folder / "bpe").mkdir()
    (folder / "bpe" / "vocab.json").write_text(json.dumps(letters))
    (folder / "bpe" / "merges.txt").write_text("#version: 0.2\na b\nc d\n")
    made = Tokenizer(models.BPE(letters, [("a", "b"), ("c", "d")], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    (folder / "single").mkdir()
    made.save(str(folder / "single" / "tokenizer.json"))


def _read_tokenizer(folder: Path) -> None:
    for name in ("bpe", "single"):
        tokenizer = load_tokenizer(str(folder / name))
        tokenizer.decode(tokenizer.encode("ab cd"))
        tokenizer.token(5)


def _write_vocabulary(folder: Path) -> None:
    (folder / "vocabulary.json").write_text(json.dumps(Vocabulary.build("bytes", ("babyai",)).to_json()))


def _read_vocabulary(folder: Path) -> None:
    Vocabulary.from_json(read_json_object(folder / "vocabulary.json"))


def _write_meta(folder: Path) -> None:
    (folder / "7" / "meta").mkdir(parents=True)
    meta = checkpoint_meta.sealed({"config": {}, "domains": {}, "data_state": None}, 7, {"loss": 1.0},
                                  {"params": {"kernel": np.ones((2, 3), np.float32)}})
    (folder / "7" / "meta" / "data.json").write_text(json.dumps(meta))


def _write_request(folder: Path) -> None:
    message = {"type": "act", "images": {"rgb": np.zeros((8, 8, 3), np.uint8)}, "instruction": "go"}
    (folder / "request").write_bytes(wire.pack(message))


def _read_request(folder: Path) -> None:
    read_request((folder / "request").read_bytes(), babyai_domain())


def _write_limits(folder: Path) -> None:
    (folder / "limits.json").write_text(json.dumps({"action": [[-0.01, 0.02], [-0.01, 0.02]]}))


def _write_metrics(folder: Path) -> None:
    record = {"step": 1, "split": "train", "loss": 1.0, "losses": {"mae": 1.0}}
    (folder / "metrics.jsonl").write_text("".join(json.dumps({**record, "step": n}) + "\n" for n in range(1, 5)))


def _read_metrics(folder: Path) -> None:
    MetricsLog(folder, 3).close()


def _write_prepare_config(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({
        "cameras": {"rgb": "image_0"}, "image_size": 224, "fields": {"action": "a,b"}, "options": {"state": True},
        "action_spec": LANGUAGE_TABLE.to_dict()}))


def _rlds(file_format: Any) -> Reader:
    return Reader(lambda folder: rlds_sets.bridge_set(folder, file_format, {"train": 2, "val": 1}),
                  _source("rlds", "bridge/0.1.0", cameras={"rgb": "image_0"},
                          fields={"action": "world_vector,open_gripper"},
                          action_spec=presets.arm_spec("arm", names=("x", "y", "grip"), low=-1.0, high=1.0)))


def _lerobot(make: Callable[..., Path], kind: str) -> Reader:
    return Reader(lambda folder: make(folder / "set", kind),
                  _source("lerobot", "set", recordings=1, cameras={"rgb": lerobot_sets.TOP}))


READERS: Mapping[str, Reader] = {
    "store": Reader(lambda folder: babyai_store(folder / "store", (2, 1), (1,)), _read_store),
    "store of numbers": Reader(lambda folder: arm_store(folder / "store", [np.zeros((3, 2))]), _read_store),
    "specs": Reader(_write_specs, _read_specs),
    "images": Reader(_write_images, _read_images),
    "rlds, tfrecord": _rlds("tfrecord"),
    "rlds, array_record": _rlds("array_record"),
    "calvin": Reader(_write_calvin, _source("calvin", "c", out_of_bounds=1.0)),
    "lerobot 2, images": _lerobot(lerobot_sets.version_2, "image"),
    "lerobot 3, videos": _lerobot(lerobot_sets.version_3, "video"),
    "robomimic": Reader(lambda folder: hdf5_demonstrations.robomimic_file(folder / "lift.hdf5"),
                        _source("robomimic", recordings=1, instruction_text="lift")),
    "vpt": Reader(lambda folder: vpt_pairs.write_pair(folder, "a", [vpt_pairs.tick(t, keys=["w"]) for t in range(6)]),
                  _source("vpt", instruction_text="play", options={"keep_idle": True})),
    "gamepad": Reader(lambda folder: gamepads.write_play(folder, "a"), _source("gamepad", instruction_text="win")),
    "bleeding_edge": Reader(lambda folder: bleeding_edge_clips.write_clip(folder, stored=False),
                            _source("bleeding_edge", instruction_text="win")),
    "video_text, videos": Reader(_write_video_texts, _source("video_text", "texts.csv")),
    "video_text, cines": Reader(_write_cine_texts, _source("video_text", "texts.jsonl")),
    "weights, safetensors": Reader(_write_weights("safetensors"), _read_weights),
    "weights, torch": Reader(_write_weights("torch"), _read_weights),
    "exported folder": Reader(_write_export, _read_export, ("agent.json", "vocabulary.json")),
    "tokenizers": Reader(_write_tokenizer, _read_tokenizer),
    "vocabulary": Reader(_write_vocabulary, _read_vocabulary, names_file=False),
    "checkpoint meta": Reader(_write_meta, lambda folder: checkpoint_meta.read(epath.Path(folder / "7")),
                              errors=(ValueError, OSError, DamagedCheckpointError)),
    "requests": Reader(_write_request, _read_request, names_file=False),
    "action limits": Reader(_write_limits, lambda folder: ActionLimits.read(folder / "limits.json", LANGUAGE_TABLE)),
    "metrics": Reader(_write_metrics, _read_metrics),
    "prepare config": Reader(_write_prepare_config, lambda folder: read_prepare_config(str(folder / "config.json"), []),
                             names_file=False),
}
