"""The domains of a run: the one to act in, and those to generate text or to classify in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.checkpoints.restore import ActingCheckpoint
from agent_jax.data.pipeline.domains import Domain


def domains_of(loaded: ActingCheckpoint) -> dict[str, Domain]:
    """The domains of a checkpoint, by name."""
    vocabulary = Vocabulary.from_json(loaded.meta["vocabulary"])
    return {name: Domain.from_meta(meta, vocabulary) for name, meta in loaded.meta["domains"].items()}


def acting_domain(domains: Mapping[str, Domain], name: str, directory: Any) -> Domain:
    """The domain of a run to act in: the named one, or the only one with actions; of a run without any, the first one.

    Raises:
        ValueError: an unknown name, or none although several domains have actions.
    """
    acting = [one for one, domain in domains.items() if domain.spec]
    if not name and domains and len(acting) <= 1:
        name = (acting or sorted(domains))[0]
    if name not in domains:
        raise ValueError(f"domain={name!r}: {directory} was trained on {', '.join(sorted(domains)) or 'no domain'}; "
                         "name one of them")
    return domains[name]


def prompted_domain(domains: Mapping[str, Domain], layout: str, call: str, name: str, own: Domain) -> Domain:
    """The domain of a layout: the named one, `own` if it has the layout, or the only one that has it.

    Args:
        domains: of the run, by name.
        layout: that is wanted.
        call: that needs it, for messages.
        name: of one of them, or "".
        own: the domain of the policy.

    Raises:
        ValueError: an unknown name, a domain of another layout, or none named although there are several.
    """
    fitting = [one for one, domain in domains.items() if domain.layout == layout]
    if not name and own.layout == layout:
        name = own.name
    name = name or (fitting[0] if len(fitting) == 1 else "")
    if name not in fitting:
        found = f"domain {name!r} has the layout {domains[name].layout!r}" if name in domains else (
            f"domain={name!r} is not a domain of the run" if name or not fitting else "no domain is named")
        raise ValueError(f"{call}: {found}; expected one of the layout {layout!r} "
                         f"({', '.join(fitting) or 'this run had none'})")
    return domains[name]
