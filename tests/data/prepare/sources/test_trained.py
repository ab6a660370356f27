"""Two training steps on prepared videos: games, and clips with text."""

from __future__ import annotations

from pathlib import Path

import pytest
from bleeding_edge_clips import COLUMNS, write_clip
from cines import grey_cine
from gamepads import write_play
from prepared_runs import train_two_steps
from videos import write_video
from vpt_pairs import tick, write_pair

from agent_jax.actions import BLEEDING_EDGE
from agent_jax.config import DomainConfig
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.prepare import prepare


def prepared(kind: str, raw: Path, out: Path, **config) -> Path:
    store, _ = prepare(kind, raw, out, PrepareConfig(**{"image_size": 16, "window": 2, "validation": 0.5, **config}))
    return Path(store.directory)


@pytest.mark.slow
def test_training_on_minecraft(tmp_path):
    for name in "ab":
        write_pair(tmp_path / "raw", name, [tick(t, keys=["w", "a"], dx=10 * t) for t in range(8)])
    store = prepared("vpt", tmp_path / "raw", tmp_path / "store", instruction_text="chop")
    train_two_steps(store, DomainConfig(window=2, stride=2, max_text=16))


@pytest.mark.slow
def test_training_on_gamepad_data(tmp_path):
    for name in "ab":
        write_play(tmp_path / "raw", name)
    store = prepared("gamepad", tmp_path / "raw", tmp_path / "store", instruction_text="win")
    train_two_steps(store, DomainConfig(window=2, stride=2, max_text=16))


@pytest.mark.slow
def test_training_on_the_bleeding_edge_sample_by_the_spec_of_pretraining(tmp_path):
    for game in "AB":
        write_clip(tmp_path / "raw", f"{game}_step-1_tick-1")
    store = prepared("bleeding_edge", tmp_path / "raw", tmp_path / "store", instruction_text="win",
                     options={"buttons": COLUMNS})
    train_two_steps(store, DomainConfig(action_spec=BLEEDING_EDGE.to_dict(), window=2, stride=2, max_text=16))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["answer", "label"])
def test_training_on_videos_with_text(tmp_path, layout):
    write_video(tmp_path / "a.mp4", 8)
    grey_cine(tmp_path / "b.dcm", frames=8)
    (tmp_path / "texts.csv").write_text("file,caption,label\na.mp4,a dog,0\nb.dcm,a heart,1\n")
    store = prepared("video_text", tmp_path / "texts.csv", tmp_path / "store")
    domain = DomainConfig(layout=layout, window=2, stride=2, max_text=16, max_answer=16, video=True)
    train_two_steps(store, domain, classes=2 if layout == "label" else 0)
