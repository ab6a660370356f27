"""The policy of an exported folder."""

from __future__ import annotations

from agent_jax.convert.exported.acting import Acting
from agent_jax.convert.exported.prompted import Prompted


class ExportedPolicy(Acting, Prompted):
    """Acts, answers prompts and classifies clips; a subclass has the network: `_tokens`, `_probabilities`, `_read`."""
