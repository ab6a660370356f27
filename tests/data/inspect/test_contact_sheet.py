from __future__ import annotations

import pytest
from data_stores import babyai_store, language_table_store
from PIL import Image

from agent_jax.actions import LANGUAGE_TABLE
from agent_jax.config import DomainConfig
from agent_jax.data.__main__ import main
from agent_jax.data.inspect.contact_sheet import show


def test_a_sheet_shows_frames_in_temporal_order_with_texts_and_actions(tmp_path):
    store = language_table_store(tmp_path / "set", lengths=(6, 8, 3))
    out = tmp_path / "sheet.html"
    config = DomainConfig(action_spec=LANGUAGE_TABLE.to_dict())
    assert "3 episodes of 'train'" in show(store.directory, out, config, split="", episodes=9, frames=3)
    page = out.read_text()
    assert page.count("<img") == 9
    assert "push block 1 left \N{RIGHTWARDS ARROW}" in page
    captions = [line for line in page.replace("<figcaption>", "\n").splitlines() if line.startswith("step ")]
    assert captions == ["step 0", "step 2", "step 5", "step 0", "step 4", "step 7", "step 0", "step 1", "step 2"]
    assert page.count("dx ") == page.count("dy ") == 9
    assert "http" not in page  # opens without a network


def test_a_png_holds_every_frame(tmp_path):
    store = babyai_store(tmp_path / "set")
    line = ["show", str(store.directory), "--out", str(tmp_path / "sheet.png"), "--episodes", "2"]
    assert main([*line, "--json", str(tmp_path / "sheet.json")]) == 2  # `show` has no --json
    assert main(line) == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] == 8 + 6 * (160 + 8)  # the longer of the two has six steps
    assert sorted(file.name for file in tmp_path.iterdir()) == ["set", "sheet.png"]


def test_wrong_names_and_splits_are_refused(tmp_path):
    store = babyai_store(tmp_path / "set")
    with pytest.raises(ValueError, match="ends in .png or .html"):
        show(store.directory, tmp_path / "sheet.gif", DomainConfig(), split="", episodes=1, frames=1)
    with pytest.raises(ValueError, match="no split 'valid'"):
        show(store.directory, tmp_path / "sheet.png", DomainConfig(), split="valid", episodes=1, frames=1)
    with pytest.raises(ValueError, match="--episodes=0"):
        show(store.directory, tmp_path / "sheet.png", DomainConfig(), split="", episodes=0, frames=1)
