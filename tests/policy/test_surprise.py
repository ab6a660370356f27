"""Surprise: the MAE error of images at acting time, alone and in the server's reply."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed_rows import random_params
from served import babyai_policy, make_image, served, table_policy, twin

from agent_jax.client import BadRequestError, Client
from agent_jax.models.agent import Agent
from agent_jax.models.mae import random_mask
from agent_jax.models.vision import patchify

IMAGES = [make_image(seed) for seed in range(3)]


def test_surprise_is_the_mean_mae_error_of_the_masks_whatever_else_is_in_the_call() -> None:
    policy = twin(babyai_policy())
    found = policy.surprise(IMAGES, masks=2, seed=5)
    model = policy._config.model
    agent, params = Agent(model), {"params": random_params(model)}
    expected = []
    for image in IMAGES:
        frames, clip, errors = jnp.asarray(image)[None, None], jnp.zeros((1, 1), jnp.int32), []
        for mask in range(2):
            key = jax.random.fold_in(jax.random.key(5), mask)[None]
            _, predicted, _, _ = agent.apply(params, frames, clip, key, method="reconstruct")
            hidden = random_mask(key, clip, model.vision.patches, model.mae.mask_ratio).hide_BFI
            pixels = jnp.take_along_axis(patchify(frames, model.vision.patch_size), hidden[..., None], axis=2)
            errors.append(float(jnp.mean((predicted - pixels) ** 2)))
        expected.append(np.mean(errors))
    assert found.shape == (3, 1)
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(policy.surprise(IMAGES[1:2], masks=2, seed=5), found[1:2], rtol=1e-6)
    np.testing.assert_array_equal(policy.surprise(IMAGES, masks=2, seed=5), found)
    assert len({policy.surprise(IMAGES[:1], masks=2, seed=seed).item() for seed in range(8)}) > 1
    assert policy.surprise(IMAGES[:1]).shape == (1, 1)


def test_other_parameters_have_their_own_surprise_and_wrong_calls_are_refused() -> None:
    policy = twin(babyai_policy())
    other = policy.with_params(jax.tree.map(lambda leaf: leaf * 1.5, random_params(policy._config.model)))
    assert (other.surprise(IMAGES, masks=2) != policy.surprise(IMAGES, masks=2)).all()
    with pytest.raises(ValueError, match="masks=0"):
        policy.surprise(IMAGES, masks=0)
    with pytest.raises(ValueError, match=r"surprise: .*float32"):
        policy.surprise([IMAGES[0].astype(np.float32)])
    without = policy.with_params({name: part for name, part in random_params(policy._config.model).items()
                                  if name != "mae"})
    with pytest.raises(ValueError, match="no MAE decoder"):
        without.surprise(IMAGES)


def test_the_server_replies_with_the_surprise_if_it_is_asked_and_measures_it() -> None:
    policy, state = twin(table_policy()), {"effector_target_translation": np.float32([0.3, 0.1]),
                                           "effector_translation": np.float32([0.2, 0.0])}
    expected = twin(table_policy()).surprise([IMAGES[0]], masks=2)
    with served(policy, max_batch=1, surprise=2) as running, Client(running.url) as client:
        assert client.metadata["surprise_masks"] == 2
        action = client.act(IMAGES[0], "go", state, surprise=True)
        np.testing.assert_allclose(client.surprise, expected[0], rtol=1e-6)
        client.reset()
        np.testing.assert_equal(client.act(IMAGES[0], "go", state), action)
        assert client.surprise == []
    with served(policy, max_batch=1) as running, Client(running.url) as client:
        with pytest.raises(BadRequestError, match="--surprise MASKS"):
            client.act(IMAGES[0], "go", state, surprise=True)
        assert client.act(IMAGES[0], "go", state)
