"""The page about a row: every slot and target of the laid-out row, by kind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from small_runs import copied, store_directory, straight_run

from agent_jax.view.__main__ import main


def page_of(tmp_path: Path, *arguments: str) -> str:
    assert main(["row", *arguments, "--out", str(tmp_path / "row.html")]) == 0
    return (tmp_path / "row.html").read_text()


def slots(page: str, kind: str) -> int:
    return len(re.findall(rf'<div class="slot {kind}[" ]', page))


def test_the_page_of_a_run_shows_the_packed_row_of_its_first_epoch(base: Path, tmp_path: Path) -> None:
    trained = straight_run(base)
    train = trained.run.data.train
    page = page_of(tmp_path, str(trained.workdir), "--index", "1")
    row = train.row(0, 1)
    assert len(re.findall("<h2>Segment", page)) == int(row["segment_BS"].max())
    assert slots(page, "image") == int((row["clip_BF"] >= 0).sum())
    weighted = row["language_weight_BT"] + row["action_weight_BT"] > 0
    assert len(re.findall(r"<small>[LA] [\d.]+</small>", page)) == int(weighted.sum())
    tokens = (row["segment_BS"] > 0) & (row["visual_BS"] < 0)
    assert sum(slots(page, kind) for kind in ("text", "state", "action")) == int(tokens.sum())
    assert len(re.findall(r'class="slot action[^"]* choice', page)) == int((row["choice_BT"] >= 0).sum())
    assert "<script" not in page


def test_the_page_of_a_data_set_takes_sizes_from_the_config_and_a_missing_row_is_refused(
        base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, file = store_directory(base), tmp_path / "fields.py"
    file.write_text("def get_config():\n    return {'model': {'vision': {'image_size': 16, 'patch_size': 8}}, 'data': "
                    f"{{'domains': {{'tiles': {{'path': '{store}', 'window': 2, 'stride': 2}}}}}}}}\n")
    page = page_of(tmp_path, str(store), "--config", str(file))
    assert "16 pixels, 5 visual tokens each" in page
    assert main(["row", str(store), "--index", "9999", "--out", str(tmp_path / "none.html")]) == 2
    assert re.search(r"--index=9999: .* has \d+ rows.*0 to \d+", capsys.readouterr().err)
    run = copied(straight_run(base).workdir, tmp_path / "run")
    assert main(["row", str(run), "--split", "test", "--out", str(tmp_path / "none.html")]) == 2
    assert "leave out --split" in capsys.readouterr().err
