"""The record, the lines and files it becomes."""

import dataclasses
import json
import math
import os
import struct
import subprocess
import sys

import numpy as np
import pytest

from agent_jax.models.losses import LossSums
from agent_jax.train.metrics import (
    LABEL_LOSSES,
    LOSSES,
    MetricsLog,
    Rates,
    Record,
    SuccessRecord,
    _scalars,
    duration,
    mean_losses,
    progress_line,
    rates,
    success_line,
)


def record(step, **fields):
    losses = {"language": 1.5, "action": 0.75, "mae": 0.25, "language_accuracy": 0.5, "action_accuracy": 0.625}
    defaults = {"split": "train", "time": 1700000000.0, "loss": 2.5, "losses": losses, "domains": {"babyai": losses},
                "gradient_norm": 2.0, "learning_rate": 1e-4, "rates": Rates(5.0, 320.0, 4410.0, 0.02, 620.0)}
    return Record(step=step, **{**defaults, **fields})


def sums(**fields):
    zero = dict.fromkeys(LossSums.__dataclass_fields__, np.zeros(2))
    return LossSums(**{**zero, **{name: np.asarray(value, np.float32) for name, value in fields.items()}})


def steps_of(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_the_line_of_a_record_is_frozen():
    losses = {"language": 1.5, "action": 0.75, "mae": 0.25, "language_accuracy": 0.5, "action_accuracy": 0.625}
    assert json.loads(record(200).to_json()) == {
        "step": 200, "split": "train", "time": 1700000000.0, "loss": 2.5, "losses": losses,
        "domains": {"babyai": losses}, "gradient_norm": 2.0, "learning_rate": 1e-4,
        "rates": {"steps_per_second": 5.0, "frames_per_second": 320.0, "slots_per_second": 4410.0, "data_wait": 0.02,
                  "eta_seconds": 620.0}}
    assert list(losses) == list(LOSSES)


def test_what_is_not_finite_or_does_not_apply_is_null():
    line = json.loads(Record(1, "validation", 0.0, math.nan, {"mae": math.inf}, {}).to_json())
    assert [line[name] for name in ("loss", "rates", "learning_rate", "gradient_norm")] == [None] * 4
    assert line["losses"] == {"mae": None}


def test_losses_are_sums_over_weights_by_domain_and_over_all():
    of = sums(language=[6.0, 0.0], action=[1.0, 8.0], mae=[2.0, 2.0], action_correct=[1.0, 3.0])
    by = sums(language=[3.0, 0.0], action=[2.0, 4.0], mae=[4.0, 16.0], action_correct=[2.0, 4.0])
    over_all, by_domain = mean_losses(of, by, ["one", "two"])
    assert over_all["language"] == 2.0
    assert over_all["action"] == pytest.approx(1.5)
    assert over_all["mae"] == pytest.approx(0.2)
    assert over_all["action_accuracy"] == pytest.approx(4 / 6)
    assert by_domain["one"] == pytest.approx({"language": 2.0, "action": 0.5, "mae": 0.5, "language_accuracy": math.nan,
                                              "action_accuracy": 0.5}, nan_ok=True)
    assert by_domain["two"]["action"] == 2.0
    assert math.isnan(by_domain["two"]["language"])


def test_rates_are_per_second_and_the_wait_a_share():
    measured = rates(steps=10, frames=640, slots=2000, seconds=4.0, waited=1.0, left=30)
    assert measured == Rates(2.5, 160.0, 500.0, 0.25, 12.0)
    assert math.isnan(rates(steps=0, frames=0, slots=0, seconds=0.0, waited=0.0, left=3).eta_seconds)


def test_the_progress_line_shows_losses_speed_wait_and_time_left():
    assert progress_line(record(1200), 20_000) == (
        "train 1,200/20,000  loss 2.500  language 1.500  action 0.750  mae 0.250  action accuracy 62.5%  320 frames/s"
        "  data wait 2%  ETA 10:20")


def test_the_progress_line_leaves_out_what_does_not_apply():
    losses = dict.fromkeys(LOSSES, math.nan) | {"language": 1.0}
    assert progress_line(record(5, split="validation", losses=losses, rates=None), 10) == (
        "validation 5/10  loss 2.500  language 1.000")


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (59.7, "1:00"), (3605, "1:00:05"), (math.nan, "?")])
def test_durations_read_like_a_clock(seconds, text):
    assert duration(seconds) == text


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    log = MetricsLog(tmp_path / "new", 0)
    log.write(record(50))
    assert steps_of(tmp_path / "new" / "metrics.jsonl") == [50]
    log.close()


def test_a_resumed_log_forgets_later_steps_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [record(step).to_json() for step in (50, 100, 150)]
    path.write_text("\n".join(lines) + "\n" + lines[0][:40])
    log = MetricsLog(tmp_path, 100)
    log.write(record(150, loss=9.0))
    log.close()
    assert steps_of(path) == [50, 100, 150]
    assert json.loads(path.read_text().splitlines()[-1])["loss"] == 9.0
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(("evaluated_again", "kept"), [
    (False, [(50, "validation"), (100, "train"), (100, "validation")]), (True, [(50, "validation"), (100, "train")])])
def test_the_last_evaluation_is_forgotten_where_it_is_made_again(tmp_path, evaluated_again, kept):
    path = tmp_path / "metrics.jsonl"
    lines = [(50, "validation"), (100, "train"), (100, "validation")]
    path.write_text("".join(record(step, split=split).to_json() + "\n" for step, split in lines))
    MetricsLog(tmp_path, 100, evaluated_again=evaluated_again).close()
    assert [(line["step"], line["split"]) for line in map(json.loads, path.read_text().splitlines())] == kept


@pytest.mark.parametrize("line", ["not json", "[1]", '{"loss": 1}'])
def test_a_foreign_file_in_the_place_of_the_log_is_refused_and_kept(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl:1: found .* expected a JSON object with step and split"):
        MetricsLog(tmp_path, 0)
    assert path.read_text() == line + "\n"


def test_tensorboard_gets_every_finite_number_once(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    log = MetricsLog(tmp_path, 0)
    log.write(record(50, gradient_norm=math.nan))
    log.close()
    (path,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    data, events = path.read_bytes(), []
    while data:  # TFRecord framing: length, its checksum, the event, its checksum
        (length,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    found = {value.tag: (event.step, value.simple_value) for event in events for value in event.summary.value}
    assert found["train/loss"] == (50, 2.5)
    assert found["train/losses/action"] == (50, 0.75)
    assert found["train/domains/babyai/mae"] == (50, 0.25)
    assert found["train/rates/frames_per_second"] == (50, 320.0)
    assert "train/gradient_norm" not in found
    assert len(found) == 1 + 5 + 5 + 1 + 5


def test_success_in_the_simulator_has_a_line_of_its_own(tmp_path):
    figures = {"success": 0.5, "episodes": 4, "ci95": [0.15, 0.85], "mean_steps": math.nan, "lost": []}
    found = SuccessRecord(20, 5.0, {"GoToObj": {"greedy": figures}})
    log = MetricsLog(tmp_path, 0)
    log.write(found)
    log.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line == {"step": 20, "split": "closed_loop", "time": 5.0,
                    "success": {"GoToObj": {"greedy": {**figures, "mean_steps": None}}}}
    assert success_line(found, 100) == "closed_loop 20/100  GoToObj 50.0% [15.0%, 85.0%] of 4"
    figures["chain"] = {"in_a_row": [], "mean_length": 1.127}
    chains = SuccessRecord(20, 5.0, {"Chains": {"greedy": figures}})
    assert success_line(chains, 100).endswith(" of 4, mean length 1.13")
    assert _scalars({"success": found.success})["success/GoToObj/greedy/success"] == 0.5
    del figures["chain"]
    several = SuccessRecord(20, 5.0, {"tiles": {"GoToObj": {"greedy": figures}}, "arm": {"Push": {"greedy": figures}}})
    assert success_line(several, 100) == ("closed_loop 20/100  tiles GoToObj 50.0% [15.0%, 85.0%] of 4  "
                                          "arm Push 50.0% [15.0%, 85.0%] of 4")


def test_opening_the_log_imports_no_torch_and_leaves_it_to_others(tmp_path, root):
    program = """
import sys
from agent_jax.train.metrics import MetricsLog
MetricsLog(sys.argv[1], 0).close()
assert "torch" not in sys.modules
import torch
print(torch.ones(1).item())
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(root)},
                          capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "1.0\n"), done.stderr

def test_every_loss_is_logged():
    joint = {"language_share", "action_share", "mae_share"}  # parts of eq. 5, which is logged as the loss
    summed = {field.name for field in dataclasses.fields(LossSums)} - joint
    logged = {name.replace("_accuracy", "_correct") for name in (*LOSSES, *LABEL_LOSSES)}
    assert logged == summed, "add the new loss to LOSSES of agent_jax/train/metrics.py"
