"""Demonstrations of BabyAI's bot, recorded in this process, and a tiny agent for them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from tiny_checkpoints import Made, make_checkpoint

from agent_jax.data.store.store import Store
from agent_jax.data.store.writer import write_store
from agent_jax.envs import load
from agent_jax.envs.workers.demonstration_worker import demonstrate, demonstration_features

SIZE = 28  # pixels; not the agent's size, so that images are resized


@functools.cache
def recorded_store(directory: Path, *, shift: int = 0, collected: bool = True) -> Store:
    """Four episodes in each split with some random steps; `shift` is added to the seeds in their names."""
    module = load("babyai")
    environment = module.make("GoToObj", SIZE)

    def episodes(first: int) -> list[dict[str, Any]]:
        found = [demonstrate(module, environment, seed, 0.3) for seed in range(first, first + 8)]
        return [{**record, "episode_id": f"GoToObj/{first + number + shift}"} for number, record in enumerate(found)
                if record is not None][:4]

    made = {"environment": "babyai", "simulator": module.version()}
    metadata = {"action_spec": module.ACTION_SPEC.to_dict(), **({"demonstrations": made} if collected else {})}
    return write_store(directory, "babyai", demonstration_features(module, SIZE),
                       {"train": episodes(0), "test": episodes(500_000_000)}, metadata)


@functools.cache
def tiny_agent(directory: Path) -> Made:
    """A checkpoint with random parameters; images of 24 pixels, windows of 3 steps."""
    return make_checkpoint(directory, ("babyai",), domain_fields={"max_text": 40})
