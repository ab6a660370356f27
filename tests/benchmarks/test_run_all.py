"""run_all.py: every benchmark in a process of its own, the page and the JSON, whatever fails or is absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import run_all  # of benchmarks/
from benchmarks_page import write_plots
from machine import family

# run_all.py starts benchmarks with a preexec_fn, so it forks. It holds no JAX backend itself; this process does.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork", "ignore:Exception ignored in. <function _at_fork")

SCRIPT = """
import json, sys
print("one line")
print("a progress bar", file=sys.stderr)
print("| size | seconds |")
print("|---|---|")
print("| 1 | 2 |")
arguments = sys.argv[1:]
if "--fail" in arguments:
    sys.exit("it went wrong")
with open(arguments[arguments.index("--json") + 1], "w") as file:
    json.dump({"curves": {"depth": {"points": [{"depth": n, "seconds": n / 2, "flops": n * 1e9} for n in (1, 2, 4)]}},
               "said": arguments, "machine": "x86_64"}, file)
"""


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    """Three scripts in the place of the real ones, called as those are."""
    scripts = tmp_path / "benchmarks"
    scripts.mkdir()
    for name in ("scaling_curves", "broken", "unmet", "input_pipeline"):
        (scripts / f"{name}.py").write_text(SCRIPT)
    monkeypatch.setattr(run_all, "HERE", scripts)
    return (
        run_all.Benchmark("scaling_curves", "--full", "--tiny"),
        run_all.Benchmark("broken", "--fail", "--fail"),
        run_all.Benchmark("lonely", "", ""),
        run_all.Benchmark("unmet", "", "", ("no_such_package",)),
        run_all.Benchmark("input_pipeline", "--data {data}", "--data {data}"),
    )


def read(out: Path) -> dict[str, Any]:
    return json.loads((out / "benchmarks.json").read_text())["runs"]


def test_what_fails_or_is_absent_is_said_and_the_others_are_on_the_page(
        fakes: tuple[Any, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "docs"
    monkeypatch.setenv("AGENT_JAX_SHARED", str(tmp_path / "nothing"))
    assert run_all.main(["--quick", "--out", str(out)], fakes) == 1
    runs = read(out)
    assert {name: run["status"] for name, run in runs.items()} == {
        "scaling_curves": "ok", "broken": "failed", "lonely": "left out", "unmet": "left out",
        "input_pipeline": "left out"}
    assert runs["scaling_curves"]["figures"]["said"][0] == "--tiny"
    assert runs["scaling_curves"]["command"] == "python benchmarks/scaling_curves.py --tiny"
    assert runs["scaling_curves"]["machine"]["cores"] >= 1
    text = (out / "benchmarks.md").read_text()
    printed = "```\none line\n```\n\n| size | seconds |\n|---|---|\n| 1 | 2 |\n"
    for expected in (printed, "it went wrong", "no_such_package", "lonely.py is not in this checkout", "needs --data",
                     "no figures to go by", "![scaling_curves](scaling_curves.svg)"):
        assert expected in text, expected
    before, broken = text.split("## broken")
    assert "progress bar" not in before
    assert printed in broken.split("## lonely")[0]  # what it printed before it failed
    assert "<svg" in (out / "scaling_curves.svg").read_text()
    assert f"broken: failed: {tmp_path}/benchmarks/broken.py --fail: exit status 1" in capsys.readouterr().out


def test_one_benchmark_run_again_leaves_the_figures_of_the_others(fakes: tuple[Any, ...],
                                                                  tmp_path: Path):
    out = tmp_path / "docs"
    assert run_all.main(["--out", str(out), "--only", "scaling_curves"], fakes) == 0
    before = read(out)["scaling_curves"]
    assert run_all.main(["--out", str(out), "--only", "broken"], fakes) == 1
    assert list(read(out)) == ["scaling_curves", "broken"]
    assert read(out)["scaling_curves"] == before
    assert before["mode"] == "full"


def test_another_machines_figures_stand_beside_ours(fakes: tuple[Any, ...], tmp_path: Path):
    there, out = tmp_path / "there", tmp_path / "here"
    run_all.main(["--out", str(there), "--only", "scaling_curves"], fakes)
    other = read(there)
    other["scaling_curves"]["machine"]["cpu"] = "Another CPU"
    for point in other["scaling_curves"]["figures"]["curves"]["depth"]["points"]:
        point["seconds"] *= 4
    (there / "benchmarks.json").write_text(json.dumps({"runs": other}))
    run_all.main(["--out", str(out), "--only", "scaling_curves", "--beside", str(there / "benchmarks.json")], fakes)
    page = (out / "benchmarks.md").read_text()
    assert "Another CPU" in page
    assert "| curves.depth.points.2.seconds | 2 | 8 | 0.25 |" in page


def test_a_file_of_other_content_is_refused_before_anything_runs(fakes: tuple[Any, ...],
                                                                 tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "other.json").write_text("[1, 2]")
    with pytest.raises(SystemExit) as ended:
        run_all.main(["--out", str(tmp_path / "docs"), "--beside", str(tmp_path / "other.json")], fakes)
    assert ended.value.code == 2
    assert "expected a benchmarks.json of run_all.py" in capsys.readouterr().err
    assert not (tmp_path / "docs").exists()


@pytest.mark.parametrize(("processor", "expected"), [
    ("AMD EPYC", "epyc"), ("AMD EPYC 7B13 64-Core Processor", "epyc"), ("Intel(R) Xeon(R) Platinum 8481C CPU", "xeon"),
    ("aarch64", "aarch64"), ("  ", "machine")])
def test_results_go_to_a_folder_named_after_the_processors_family(processor: str, expected: str):
    assert family(processor) == expected


def test_a_bar_shows_its_value_without_a_power_of_ten(tmp_path: Path):
    pytest.importorskip("matplotlib")
    from benchmark_plots import save

    save(tmp_path / "a.svg", unit="windows/s", bars={"fast": {"ours": 1052.4, "theirs": 0.12345, "other": 98.76}})
    drawn = (tmp_path / "a.svg").read_text()
    assert all(f">{label}<" in drawn for label in ("1,052", "0.123", "98.8"))
    assert "e+0" not in drawn


def test_figures_of_another_form_cost_the_plot_alone(tmp_path: Path):
    drawn = write_plots({"train_step": {"status": "ok", "figures": {"else": 1}}}, tmp_path / "plots")
    assert drawn == {"train_step": "its JSON is of another form than the plot expects (KeyError('cases'))"}


def test_every_benchmark_of_the_table_is_a_script_or_is_left_out(root: Path):
    here = {path.stem for path in (root / "benchmarks").glob("*.py")}
    beside = {"run_all", "machine", "benchmarks_page", "evidence_page", "study_page", "benchmark_plots",
              "train_step_worker", "edge_latency_worker", "product_rates", "uncached",
              "gpu_session",  # runs benchmarks of this table and these two
              "step_losses", "step_counts", "scaling", "plan_counts", "plan_table", "gpu_counts"}  # time nothing
    assert here - beside <= {benchmark.name for benchmark in run_all.BENCHMARKS}


@pytest.mark.slow
def test_benchmarks_run_at_their_tiny_sizes(tmp_path: Path):
    names = ["end_to_end", "scaling_curves", "attention_kernels", "serve_latency", "exported_closed_loop"]
    # train_step, step_profile and act_latency have slow tests of their own.
    assert run_all.main(["--quick", "--out", str(tmp_path / "docs"), "--only", *names]) == 0
    assert {name: run["status"] for name, run in read(tmp_path / "docs").items()} == dict.fromkeys(names, "ok")
    assert "No plot" not in (tmp_path / "docs" / "benchmarks.md").read_text()
