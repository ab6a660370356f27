"""Attention and occlusion of an action: equal to the model's own forward, and blind to what cannot matter."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from small_runs import straight_run

from agent_jax.data.pipeline.layout import lay_out, row_size, stack
from agent_jax.data.pipeline.windows import Windows
from agent_jax.evaluate.checkpoints import TrainedRun
from agent_jax.models.agent import Agent
from agent_jax.view import attention
from agent_jax.view.__main__ import main


@pytest.fixture(scope="module")
def trained(base: Path) -> TrainedRun:
    return TrainedRun.load(straight_run(base).workdir)


@pytest.fixture(scope="module")
def windows(trained: TrainedRun) -> Windows:
    domain = trained.domain()
    return Windows(domain, trained.open_store(domain), "train")


def test_the_weights_are_those_of_the_forward_which_they_do_not_change(trained: TrainedRun, windows: Windows) -> None:
    model, V = trained.config.model, 1 + trained.config.model.vision.patches
    size = row_size([windows.domain], V, windows.domain.images, model.language.positions)
    batch = stack([lay_out((windows.read(0, 0),), size, V, V - 1)])
    logits, weights_LBSZ = attention._observed(model, trained.params(), batch)
    expected = Agent(model).apply({"params": trained.params()}, batch)
    np.testing.assert_allclose(logits, expected.logits_BTK, rtol=1e-4, atol=1e-4)
    used = batch.segment_BS[0] > 0
    weights_LSZ = np.asarray(weights_LBSZ)[:, 0][:, used]
    np.testing.assert_allclose(weights_LSZ.sum(axis=-1), 1, rtol=1e-5)
    assert not np.triu(weights_LSZ[0][:, used], k=1).any()  # no slot sees a later one


def test_the_kinds_add_up_and_a_patch_that_equals_the_mean_colour_has_no_effect(
        trained: TrainedRun, windows: Windows) -> None:
    window = windows.read(0, 0)
    flat = dataclasses.replace(window.steps[0], frames=tuple(np.full_like(frame, 90) for frame in
                                                             window.steps[0].frames))
    found = attention.look(trained, trained.params(), windows,
                           dataclasses.replace(window, steps=(flat, *window.steps[1:])))
    np.testing.assert_allclose(sum(found.kinds.values()), 1, rtol=1e-5)
    np.testing.assert_allclose(found.layers_LFGG.sum(axis=(1, 2, 3)), found.kinds["patches"], rtol=1e-5)
    np.testing.assert_allclose(found.occlusion_FGG[0], 0, atol=1e-9)
    assert (found.occlusion_FGG[1] > 0).any()
    assert found.rank_correlation(found.occlusion_FGG) == pytest.approx(1)
    assert np.isnan(found.rank_correlation(np.ones_like(found.occlusion_FGG)))
    assert all(0 < p <= best <= 1 for *_, p, best in found.choices)


def test_the_page_has_a_row_for_each_layer_and_wrong_episodes_and_steps_are_refused(
        base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, page = str(straight_run(base).workdir), tmp_path / "attention.html"
    assert main(["attention", run, "--episode", "0", "--split", "train", "--out", str(page)]) == 0
    assert "layer 1</td>" in page.read_text()
    assert "<script" not in page.read_text()
    assert "rank correlation" in capsys.readouterr().out
    for arguments, message in ((["--episode", "99"], "--episode=99"), (["--episode", "0", "--step", "99"], "--step=99"),
                               (["--episode", "0", "--block", "3"], "--block=3")):
        assert main(["attention", run, *arguments, "--split", "train", "--out", str(page)]) == 2
        assert message in capsys.readouterr().err
