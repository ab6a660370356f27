"""The exported folder and what a policy needs of its network, which torch_agent.py and onnx_agent.py add."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agent_jax.convert.exported.domain import Domain
from agent_jax.convert.exported.row import Row, Step


@dataclass
class Episode:
    """History of one environment."""

    past: list[tuple[list[Any], Step]]  # encoded images and the step with its actions
    text: Sequence[int] = ()
    cache: Any = None  # of the engine, if the history is flushed: the KV cache of the row so far
    used: int = 0  # slots of the row in the cache


class Network:
    """An exported folder, the domain to act in and its episodes; a subclass of the policy has the network itself."""

    def __init__(self, folder: str | Path, description: Mapping[str, Any], *, domain: str = "",
                 temperature: float = 0.0, seed: int = 0):
        """Load a domain.

        Args:
            folder: exported, with agent.json.
            description: the content of agent.json.
            domain: to act, answer or classify in; may be empty if there is at most one to act in.
            temperature: of sampling among the legal ids of actions; 0: greedy.
            seed: of sampling actions.

        Raises:
            ValueError: there is no such domain, or `domain` is empty and there are several to act in.
        """
        self.folder, self.description = Path(folder), description
        prompted = list(description.get("prompted", {}))
        if not domain and not description["acting"] and len(prompted) == 1:
            [domain] = prompted
        only_prompted = len(prompted) > 1 and not description["acting"]
        self._domain = Domain.load(folder, domain) if domain or not only_prompted else None
        self.temperature, self._random = temperature, np.random.default_rng(seed)
        self.flush_every = 0  # steps after which the history is dropped; 0: it slides
        self._episodes: dict[Any, Episode] = {}

    def _tokens(self, frames_BFHWC: np.ndarray, clip_BF: np.ndarray) -> Any:
        """Projected visual tokens (B, F, V, D); `clip_BF` is the clip of each image (-1: padding)."""
        raise NotImplementedError

    def _probabilities(self, frames_BFHWC: np.ndarray, clip_BF: np.ndarray) -> np.ndarray:
        """Probabilities of the classes of each row's first clip."""
        raise NotImplementedError

    def _read(self, rows: Sequence[Row], ids: np.ndarray, room: int, episodes: Sequence[Episode] = ()
              ) -> Generator[np.ndarray, Sequence[Sequence[int]], None]:
        """Read rows, then whatever ids are sent for each; yields the logits (B, A) of `ids` at the end of each row.

        Args:
            rows: to be read.
            ids: whose logits are wanted.
            room: most slots that follow a row.
            episodes: of the rows, if their caches are kept.
        """
        raise NotImplementedError

    @property
    def domain(self) -> Domain:
        """The domain that was named, or the only one to act in, or the only one; else ValueError."""
        if self._domain is None:
            raise ValueError(f"{self.folder} has no domain of the layout 'actions', but "
                             f"{', '.join(self.description['prompted'])}, and none was named; use `say` or "
                             "`classify`, or name one")
        return self._domain

    def _of_layout(self, name: str, layout: str) -> Domain:
        """The domain to predict in: the one named here or at the start, or the only one of the layout."""
        own = self._domain
        if own is not None and own.layout == layout and name in ("", own.name):
            return own
        return Domain.load(self.folder, name, layout)


def check_finite(logits: np.ndarray) -> None:
    """Raise ValueError for logits or probabilities that are not finite."""
    if not np.isfinite(logits).all():
        raise ValueError("the logits are NaN or infinite: the parameters are damaged, or their training diverged")
