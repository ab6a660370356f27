"""The fields of config.model that differ between a checkpoint and a run: which may differ, and which may not."""

from __future__ import annotations

import dataclasses
import re

from agent_jax.config import InitConfig, ModelConfig
from agent_jax.fields import by_name
from agent_jax.help_pages import help_page

# How the model is executed or initialised; the vocabularies are compared by themselves.
EXECUTION = re.compile(r"dtype|remat|attention|unroll|language\.(token_std|position_std|vocabulary_(size|multiple))")
TRAINING = re.compile(r"visual_tokens|mae\.mask_ratio|language\.dropout")  # change no parameter
GROWN = re.compile(r"classes|language\.positions|vision\.(image_size|temporal_attention|temporal_order)|mae\..*")


@dataclasses.dataclass(frozen=True)
class FieldDifference:
    """A field of config.model with two values."""

    name: str  # "vision.image_size"
    there: object  # in the checkpoint
    here: object  # in the run

    def __str__(self) -> str:
        return f"config.model.{self.name}: {self.there!r} there, {self.here!r} here"


def model_differences(there: ModelConfig, here: ModelConfig) -> list[FieldDifference]:
    """The fields that differ, without those of `EXECUTION`."""
    values, ours = by_name(dataclasses.asdict(there)), by_name(dataclasses.asdict(here))
    return [FieldDifference(name, values[name], ours[name]) for name in ours
            if values[name] != ours[name] and not EXECUTION.fullmatch(name)]


def check_fields(there: ModelConfig, here: ModelConfig, init: InitConfig) -> list[FieldDifference]:
    """The fields that differ and may.

    Some of the others change no shape (heads, activations, the epsilon of LayerNorm, positions of the encoder): the
    parameters would load and compute something else.

    Raises:
        ValueError: lists every field that may not differ with both values, and the field of `init` that allows it,
            where there is one.
    """
    found = model_differences(there, here)
    lines = [f"{one}{hint}" for one in found if (hint := _objection(one, there, here, init)) is not None]
    if lines:
        raise ValueError(
            f"config.init.checkpoint={init.checkpoint}: its model (there) differs from config.model (here), so its "
            "parameters would compute something else; set these fields to the checkpoint's values, or take another "
            "checkpoint" + help_page("guides/finetune.md", "Start from a pre-trained agent") + ":\n"
            + "\n".join(f"  {line}" for line in lines))
    return found


def _objection(field: FieldDifference, there: ModelConfig, here: ModelConfig, init: InitConfig) -> str | None:
    """None if the field may differ; else what allows it, "" if nothing does."""
    if field.name == "language.positions" and here.language.positions > there.language.positions:
        return None if init.more_positions else (
            "; config.init.more_positions=True adds positions, which repeat those of the checkpoint")
    if field.name == "vision.image_size":
        return None if init.interpolate_positions else (
            "; config.init.interpolate_positions=True takes it for images of another size, and resizes a trained table "
            "of positions")
    if field.name == "vision.temporal_order" and there.vision.temporal_attention and here.vision.temporal_attention:
        return ""
    return None if GROWN.fullmatch(field.name) or TRAINING.fullmatch(field.name) else ""


def decoder_differs(found: list[FieldDifference]) -> bool:
    """Whether the MAE decoder is another one, so that none of its parameters can be taken."""
    return any(one.name.startswith("mae.") and not TRAINING.fullmatch(one.name) for one in found)
