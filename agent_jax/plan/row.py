"""An upper bound of the row size of a run, from its config without its data.

Training shortens its rows to the windows of the data (data/pipeline/packing.py). Here a row is as long as `row_size`
makes it for the longest windows and texts that the config allows.
"""

from __future__ import annotations

import dataclasses

from etils import epath

from agent_jax.actions import BABYAI, ActionSpec, BoundSpec, StateSpec
from agent_jax.actions.declarations import closed, vocabulary_blocks
from agent_jax.actions.text_tokenizer import ByteTokenizer
from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.batch import RowSize
from agent_jax.config import Config, DomainConfig
from agent_jax.data.pipeline.domains import Domain
from agent_jax.data.pipeline.layout import row_size
from agent_jax.models.agent import training_visual_tokens

OPT_TEXT_IDS = 50_265  # of OPT's tokenizer


@dataclasses.dataclass(frozen=True)
class PlannedRow:
    """The size of a row, and the assumptions behind it."""

    size: RowSize
    config: Config  # with the vocabulary's size filled in
    notes: tuple[str, ...]


def planned_row(config: Config, text_ids: int = 0) -> PlannedRow:
    """The row of a run, without its data.

    Args:
        config: of the run.
        text_ids: text ids of the vocabulary; 0: those of `config.vocabulary.tokenizer` if it exists, else OPT's.

    Raises:
        ValueError: the config has no data sets, or windows that do not fit the model's positions.
    """
    if not config.data.domains:
        raise ValueError("config.data.domains: empty, expected at least one data set, whose windows make the rows")
    notes = ["as long as the config's longest windows and texts; training shortens rows to what the data fill"]
    text, note = _text_ids(config.vocabulary.tokenizer, text_ids)
    notes += note
    # The number of action ids does not depend on the tokenizer.
    stand_in = ByteTokenizer()
    vocabulary = Vocabulary(stand_in, vocabulary_blocks(config.vocabulary.blocks, config.data.declared_specs))
    domains = []
    for index, (name, entry) in enumerate(sorted(config.data.domains.items())):
        domain, note = _domain(name, index, entry, vocabulary, config)
        domains.append(domain)
        notes += note
    stateless = [domain.name for domain in domains if domain.layout == "actions" and domain.state is None]
    if stateless:
        notes.append(f"no StateSpec in the config for {', '.join(stateless)}: states in the data are not counted")
    model = config.model
    frames = config.data.frames_per_row or max(domain.images for domain in domains)
    size = row_size(domains, training_visual_tokens(model), frames, model.language.positions)
    rows = vocabulary.size - stand_in.size + text
    return PlannedRow(size, config.with_vocabulary_size(rows), tuple(notes))


def _text_ids(tokenizer: str, given: int) -> tuple[int, list[str]]:
    if given:
        return given, [f"text: {given:,} ids, from --text_ids"]
    if tokenizer == "bytes" or epath.Path(tokenizer).exists():
        return Vocabulary.build(tokenizer, ()).size, []
    return OPT_TEXT_IDS, [f"text: {OPT_TEXT_IDS:,} ids as OPT's, since config.vocabulary.tokenizer={tokenizer} is not "
                          "there"]


def _domain(name: str, index: int, entry: DomainConfig, vocabulary: Vocabulary,
            config: Config) -> tuple[Domain, list[str]]:
    """The domain of a config entry without its data, and notes on what only the data would tell."""
    where, notes = f"config.data.domains.{name}", []
    action = state = None
    if entry.layout == "actions":
        if entry.action_spec:
            action = ActionSpec.from_dict(closed(entry.action_spec, None, f"{where}.action_spec"))
        elif config.data.demonstrations_of(name).environment == "babyai":
            action = BABYAI
        else:
            notes.append(f"{where}: its ActionSpec is in the data; its actions count as no tokens")
        if entry.state_spec:
            state = StateSpec.from_dict(closed(entry.state_spec, None, f"{where}.state_spec"))
    answers = entry.max_answer if entry.layout == "answer" else 0
    domain = Domain(name=name, index=index, spec=BoundSpec(action, vocabulary) if action else None,
                    state=BoundSpec(state, vocabulary) if state else None, vocabulary=vocabulary, window=entry.window,
                    stride=entry.stride, max_text=entry.max_text, cameras=entry.cameras, instruction=entry.instruction,
                    image_size=config.model.vision.image_size, weight=entry.weight, video=entry.video,
                    fixed_positions=entry.fixed_positions, layout=entry.layout, max_answer=answers,
                    actions_per_image=entry.actions_per_image)
    return domain, notes
