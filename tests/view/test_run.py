"""The page about runs: what it shows, what it compares, and what it refuses."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent_jax.evaluate.outcomes import RolloutRecording
from agent_jax.evaluate.rollout_video import write_gif
from agent_jax.evaluate.statistics import success_summary
from agent_jax.view.__main__ import main

HOSTILE = "<script>alert('x')</script>"


def losses(value: float) -> dict[str, Any]:
    return {"language": value, "action": value / 2, "mae": None, "language_accuracy": 0.5, "action_accuracy": 0.25}


def line(step: int, split: str = "train", **more: Any) -> dict[str, Any]:
    value = 10.0 / step
    speed = {"frames_per_second": 80.0, "slots_per_second": 900.0, "data_wait": 0.01} if split == "train" else None
    return {"step": step, "split": split, "time": 1000.0 + step, "loss": value, "losses": losses(value),
            "domains": {"tiles": losses(value), "arm": losses(2 * value)}, "gradient_norm": 1.5, "learning_rate": 1e-3,
            "rates": speed, **more}


def acted(successes: list[bool]) -> dict[str, Any]:
    episodes = [{"seed": 100 + i, "success": success, "steps": 9 - i, "instruction": f"go {HOSTILE}",
                 **({} if success else {"actions": [{"action": 2}], "probabilities": [0.75]})}
                for i, success in enumerate(successes)]
    return {"GoToObj": {"greedy": {**success_summary(np.asarray(successes)), "mean_steps": 5.0, "lost": [],
                                   "per_episode": episodes}}}


def workdir(path: Path, *, successes: list[bool] | None = None, **changes: Any) -> Path:
    """A workdir; with successes, of a run that has ended."""
    path.mkdir()
    lines = [line(1), line(2), line(2, "validation"), line(3)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    if successes:
        config = {"seed": 0, "train": {"steps": 3}, "optimizer": {"learning_rate": 1e-3}, "data": {"domains": {
            "tiles": {"path": f"/data/{HOSTILE}", "layout": "actions", "window": 4, "stride": 4}}}, **changes}
        (path / "report.json").write_text(json.dumps({
            "closed_loop": acted(successes), "steps": 3, "config": config, "command": f"train {HOSTILE}",
            "seconds": {"step": 4.0, "compile": 1.0}, "data": ["data: 12 rows"], "machine": {"jax": "0.10.2"}}))
    return path


def page_of(tmp_path: Path, *runs: Path) -> str:
    assert main(["run", *map(str, runs), "--out", str(tmp_path / "page.html")]) == 0
    return (tmp_path / "page.html").read_text()


def assert_self_contained(page: str) -> None:
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert all(link.startswith("data:") for link in re.findall(r'(?:src|href)="([^"]*)"', page))


def test_a_page_has_what_was_run_curves_success_and_phases_and_escapes_every_text(tmp_path: Path) -> None:
    run = workdir(tmp_path / "run", successes=[True, False, True, True])
    (run / "rollouts").mkdir()
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    write_gif(run / "rollouts" / "GoToObj-greedy-failure.gif", RolloutRecording(
        "GoToObj", "greedy", 101, (f"go {HOSTILE}",) * 3, frames, ("left", "forward"), False, (0.5, 0.875)))
    page = page_of(tmp_path, run)
    assert_self_contained(page)
    assert "&lt;script&gt;" in page
    for text in ("total loss", "tiles (validation)", "gradient norm", "75.0%", "compile", "jax 0.10.2", "data: 12 rows",
                 "seed 101", "forward", "88%", "optimizer.learning_rate"):
        assert text in page, text
    assert page.count("data:image/gif;base64,") == 1


def test_several_runs_are_compared_by_config_and_by_shared_seeds(tmp_path: Path) -> None:
    one = workdir(tmp_path / "one", successes=[True] * 12)
    other = workdir(tmp_path / "other", successes=[False] * 10 + [True] * 2, optimizer={"learning_rate": 0.5})
    page = page_of(tmp_path, one, other)
    assert_self_contained(page)
    assert page.index("Differences of the configs") < page.index("total loss")
    assert re.search(r"optimizer.learning_rate</code></td><td><code>0.001</code></td><td><code>0.5", page)
    assert "seed</code>" not in page.split("</section>")[0]  # equal in both
    assert re.search(r"10 with one only. one is better.* p = 0.002", page)
    equal = page_of(tmp_path, one, workdir(tmp_path / "third", successes=[True] * 11 + [False]))
    assert "None: the configs are equal" in equal
    assert "does not show that one of them is better" in equal


def test_a_run_that_has_not_ended_says_so(tmp_path: Path) -> None:
    run = workdir(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "spl')  # half a line
    page = page_of(tmp_path, run)
    assert "has not ended" in page
    assert "step 3" in page
    assert "total loss" in page


@pytest.mark.parametrize(("content", "message"), [
    (None, "no metrics.jsonl"), ('{"step": 1, "loss": 2}\n', "metrics.jsonl:1: .*split"),
    ("not json\n", "metrics.jsonl:1: is not JSON")])
def test_a_workdir_without_metrics_or_of_another_format_is_one_message(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, message: str) -> None:
    (tmp_path / "run").mkdir()
    if content is not None:
        (tmp_path / "run" / "metrics.jsonl").write_text(content)
    assert main(["run", str(tmp_path / "run"), "--out", str(tmp_path / "page.html")]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def test_a_missing_directory_and_a_page_without_html_are_refused(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(tmp_path / "none"), "--out", str(tmp_path / "page.html")]) == 2
    assert main(["run", str(tmp_path), "--out", str(tmp_path / "page.txt")]) == 2
    assert re.search(r"none: no such directory.*\n.*page.txt: expected .*\.html", capsys.readouterr().err)


def test_a_report_of_an_older_version_is_shown_without_what_it_lacks(tmp_path: Path) -> None:
    run = workdir(tmp_path / "run", successes=[True, True])
    report = json.loads((run / "report.json").read_text())
    older = copy.deepcopy(report)
    for name in ("seconds", "data", "machine", "command"):
        del older[name]
    for one in older["closed_loop"]["GoToObj"]["greedy"]["per_episode"]:
        one.pop("actions", None)
    (run / "report.json").write_text(json.dumps(older))
    assert "100.0%" in page_of(tmp_path, run)


@pytest.mark.slow
def test_a_browser_draws_the_charts_asks_for_nothing_and_executes_no_text(tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium")
    page_of(tmp_path, workdir(tmp_path / "run", successes=[True, False]))
    seen: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=[
            "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"])
        page = browser.new_page()
        page.on("dialog", lambda dialog: seen.append(dialog.message))
        page.on("console", lambda message: seen.append(message.text))
        page.on("request", lambda request: seen.append(request.url))
        page.goto((tmp_path / "page.html").as_uri())
        assert page.locator("polyline").count() > 5
        assert page.locator("figure.chart").first.bounding_box()["height"] > 100
        assert HOSTILE in page.inner_text("body")
        browser.close()
    assert [url for url in seen if not url.startswith("data:")] == [(tmp_path / "page.html").as_uri()]
