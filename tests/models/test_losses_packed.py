"""Windows of three domains packed into rows, against the same ones a row each: the same sums, weights and loss."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from data_stores import (
    babyai_domain,
    babyai_store,
    game_domain,
    game_store,
    language_table_domain,
    language_table_store,
)
from packed_rows import TINY, quick_jit, random_params

from agent_jax.config import LossConfig
from agent_jax.data.pipeline.layout import row_size, stack
from agent_jax.data.pipeline.loader import PackedRows
from agent_jax.data.pipeline.packing import plan_rows
from agent_jax.data.pipeline.windows import Windows
from agent_jax.models.agent import Agent
from agent_jax.models.losses import loss_sums, loss_weights, total

V, PATCHES, HIDDEN = 17, 16, 12
ROWS = 4  # computed at a time


@pytest.fixture(scope="module")
def windows(tmp_path_factory) -> list[Windows]:
    directory = tmp_path_factory.mktemp("packed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGENT_JAX_CACHE", str(directory / "cache"))
        stores = [babyai_store(directory / "tiles", (6, 1, 4, 5, 2)), language_table_store(directory / "table", (6, 3)),
                  game_store(directory / "game", (11, 3, 2))]
        domains = [babyai_domain(index=0), language_table_domain(index=1), game_domain(index=2)]
        return [Windows(domain, store, "train") for domain, store in zip(domains, stores, strict=True)]


def sums_and_weights(windows, *, packed):
    """Added up over an epoch, with the number of its rows that hold anything."""
    vocabulary = windows[0].domain.vocabulary.size
    config = dataclasses.replace(TINY, language=dataclasses.replace(TINY.language, positions=512,
                                                                    vocabulary_size=vocabulary))
    size = row_size([mine.domain for mine in windows], V, frames_per_row=9)
    rows = PackedRows(windows, size, V, PATCHES, 0)
    if not packed:
        samples, _ = rows._epochs[0]
        rows._epochs[0] = samples, plan_rows(
            rows._usage(samples), size, 0, exclusive_N=np.ones(len(samples.domain_N), bool))
    laid_out = [rows.row(0, number) for number in range(len(rows.plan(0)))]
    laid_out += [rows.blank()] * (-len(laid_out) % ROWS)
    params = random_params(config)

    @quick_jit
    def read(batch):
        output = Agent(config).apply({"params": params}, batch)
        return loss_sums(output, batch, 3), loss_weights(batch, 3, HIDDEN)

    found = [read(stack(laid_out[first : first + ROWS])) for first in range(0, len(laid_out), ROWS)]
    return *jax.tree.map(lambda *leaves: np.sum(leaves, axis=0, dtype=np.float64), *found), len(rows.plan(0))


def test_windows_that_share_rows_have_the_loss_that_they_have_alone(windows):
    packed_sums, packed_weights, packed_rows = sums_and_weights(windows, packed=True)
    sums, weights, rows = sums_and_weights(windows, packed=False)
    assert rows == sum(len(mine) for mine in windows) > packed_rows + 3
    jax.tree.map(np.testing.assert_array_equal, packed_weights, weights)
    assert (weights.action > 0).all()
    for name in ("language", "action", "language_share", "action_share"):
        np.testing.assert_allclose(getattr(packed_sums, name), getattr(sums, name), rtol=1e-6)
    for form in ("mean", "eq5"):
        loss = [float(total(s, w, LossConfig(form=form))) for s, w in ((packed_sums, packed_weights), (sums, weights))]
        np.testing.assert_allclose(*loss, rtol=1e-6)
