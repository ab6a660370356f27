"""The rows that scaling_curves.py measures are full and of the sizes it says; exponents are those of the points."""

from __future__ import annotations

import numpy as np
import pytest
from scaling_curves import ACTION_TOKENS, BASES, CURVES, PACKED_WINDOW, fitted, rows, run_config  # of benchmarks/

from agent_jax.models.agent import training_visual_tokens


@pytest.mark.parametrize("name", CURVES)
def test_a_curve_changes_the_size_of_its_name_and_rows_are_full(name: str):
    values, change = CURVES[name]
    base = rows(BASES["quick"], run_config(BASES["quick"]))
    value = values["quick"][-1]
    sizes = change(BASES["quick"], value)
    config = run_config(sizes)
    batch = rows(sizes, config)
    visual_tokens = training_visual_tokens(config.model)
    samples = value // PACKED_WINDOW if name == "frames" else 1
    steps = {"window": value, "frames": PACKED_WINDOW}.get(name, BASES["quick"].window)
    text = value if name == "text" else BASES["quick"].text
    used = samples * (text + steps * (visual_tokens + ACTION_TOKENS))
    assert batch.frames_BFHWC.shape[:2] == (value if name == "batch" else base.rows, samples * steps)
    assert np.all((batch.segment_BS > 0).sum(axis=1) == used)
    assert batch.segment_BS.shape[1] - used < 8
    assert np.all(batch.segment_BS.max(axis=1) == samples)
    assert np.all(batch.frame_weight_BF == 1)
    assert {"width": config.model.mae.width, "depth": config.model.vision.depth}.get(name, value) == value
    assert batch.frames_BFHWC.dtype == np.uint8


def test_exponents_are_those_of_the_points_and_a_cost_that_outgrows_the_work_is_steep():
    sizes = [2, 4, 8, 16]

    def points(time_power: float) -> list[dict[str, float]]:
        return [{"seconds": 3 * n**time_power, "processor_seconds": 5 * n**2, "flops": 7 * n**1.5} for n in sizes]

    found = fitted(sizes, points(1.5))
    assert found["all"] == pytest.approx({"time": 1.5, "processor_time": 2, "flops": 1.5, "time_per_flop": 0,
                                          "processor_time_per_flop": 0.5})
    assert (found["steep"], found["steep_by_processor"]) == (False, True)
    assert fitted(sizes, points(1.75))["steep"]
    assert fitted(sizes, points(1.75))["two_largest"]["time_per_flop"] == pytest.approx(0.25)
