"""Growing keeps what the model computes: logits of carried tokens, frames of a video encoder, and itself."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from packed_rows import TINY, quick_jit, random_params

from agent_jax.actions.vocabulary import BABYAI_BLOCK, Block, ByteTokenizer, Vocabulary
from agent_jax.batch import Batch, RowSize
from agent_jax.checkpoints.fingerprint import flat
from agent_jax.config import InitConfig, ModelConfig
from agent_jax.convert.grow.fill import fill
from agent_jax.convert.grow.plan import AgentDescription, plan_growth
from agent_jax.convert.grow.report import counts_by_part, growth_json, growth_table
from agent_jax.models.agent import Agent
from agent_jax.models.language import POSITION_OFFSET

ARM = Block("arm", ("dx_0", "dx_1", "dx_2", "open"))
OTHER_ARM = Block("arm", ("open", "dx_0", "dx_1", "dy_0"))
HAND = Block("hand", ("open", "close"))
TABLE, POSITIONS = "language/token_embedding", "language/position_embedding"


def agent(*blocks: Block, **changes: Any) -> AgentDescription:
    """TINY with a vocabulary, and fields of its model changed by dotted name."""
    vocabulary = Vocabulary(ByteTokenizer(), blocks)
    model = changed(TINY, **{"language.vocabulary_size": vocabulary.size, **changes})
    return AgentDescription(model, vocabulary)


def changed(model: ModelConfig, **changes: Any) -> ModelConfig:
    for name, value in changes.items():
        part, _, field = name.rpartition(".")
        group = dataclasses.replace(getattr(model, part), **{field: value}) if part else None
        model = dataclasses.replace(model, **({part: group} if part else {field: value}))
    return model


def grown(source: AgentDescription, target: AgentDescription, **init: Any) -> tuple[dict, dict, Any]:
    params = random_params(source.model)
    growth = plan_growth(source, target, InitConfig(checkpoint="OLD", **init))
    made = fill(params, growth, jax.random.key(1), seed=5)
    shapes = {path: leaf.shape for path, leaf in flat(made).items()}
    assert shapes == {path: leaf.shape for path, leaf in target.leaves.items()}
    return params, made, growth


def same(one: Any, other: Any) -> bool:
    return np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_growing_into_the_same_model_and_vocabulary_is_the_identity():
    source = agent(ARM, BABYAI_BLOCK, classes=3)
    params, made, growth = grown(source, agent(ARM, BABYAI_BLOCK, classes=3))
    assert growth.is_identity
    assert all(leaf is flat(params)[path] for path, leaf in flat(made).items())
    assert counts_by_part(growth)["total"] == {
        "carried": sum(leaf.size for leaf in source.leaves.values()), "grown": 0, "fresh": 0, "dropped": 0}


SOURCE = agent(BABYAI_BLOCK, ARM)
TARGET = agent(HAND, OTHER_ARM, **{"language.positions": 80, "language.vocabulary_multiple": 128, "classes": 3,
                                   "mae.mask_ratio": 0.5})


# A product with a table of another number of rows may be blocked in another way: the last bits then differ (AVX-512).
@pytest.mark.parametrize(("multiple", "atol"), [(384, 0.0), (1, 1e-6)], ids=["tables of one size", "of two sizes"])
def test_logits_of_carried_tokens_are_the_same_to_the_bit(multiple: int, atol: float):
    source = agent(BABYAI_BLOCK, ARM, **{"language.vocabulary_multiple": multiple})
    params, made, growth = grown(source, TARGET, more_positions=True, copy_tokens=("hand/open=arm/open",))
    rows = growth.tokens
    there, here = rows.source_K[(rows.source_K >= 0) & ~rows.copied_K], np.flatnonzero(
        (rows.source_K >= 0) & ~rows.copied_K)
    V = 1 + TINY.vision.patches
    size = RowSize(frames=2, image_size=16, slots=2 * V + 14, targets=12)
    batch = Batch.fake(size, 2, visual_tokens=V, vocabulary_size=50)
    pick = np.random.default_rng(0).integers(0, len(there), batch.token_BS.shape)

    def logits(target: AgentDescription, params: Any, ids: np.ndarray) -> np.ndarray:
        run = quick_jit(lambda params, batch: Agent(target.model).apply({"params": params}, batch))
        found: Any = run(params, dataclasses.replace(batch, token_BS=ids[pick].astype(np.int32)))
        return np.asarray(found.logits_BTK)

    before, after = logits(source, params, there), logits(TARGET, made, here)
    assert np.isfinite(before[..., there]).all()
    np.testing.assert_allclose(after[..., here], before[..., there], rtol=0, atol=atol)
    copied = TARGET.vocabulary.id("hand", "open"), TARGET.vocabulary.id("arm", "open")
    assert same(after[..., copied[0]], after[..., copied[1]])


def test_rows_of_the_tables_are_carried_grown_and_counted():
    params, made, growth = grown(SOURCE, TARGET, more_positions=True, copy_tokens=("hand/open=arm/open",))
    old, new = flat(params)[TABLE], flat(made)[TABLE]
    there, here = SOURCE.vocabulary, TARGET.vocabulary
    for token in ("open", "dx_0", "dx_1"):
        assert same(new[here.id("arm", token)], old[there.id("arm", token)])
    assert same(new[:260], old[:260])
    assert same(new[here.id("hand", "open")], old[there.id("arm", "open")])
    carried = np.concatenate([old[:260], old[there.ids("arm", ("open", "dx_0", "dx_1"))]])
    fresh = new[[here.id("hand", "close"), here.id("arm", "dy_0")]] - carried.mean(axis=0)
    assert 0.005 < fresh.std() < 0.05  # N(0, 0.02)
    assert not np.array_equal(fresh[0], fresh[1])
    assert not new[here.size:].any()

    old, new = flat(params)[POSITIONS], flat(made)[POSITIONS]
    assert same(new[:len(old)], old)
    assert same(new[len(old):], old[POSITION_OFFSET:POSITION_OFFSET + 16])

    width, padding = 12, TARGET.model.language.vocabulary_rows - here.size
    leaves = {leaf.path: leaf for leaf in growth.leaves}
    table = leaves[TABLE]
    assert (table.carried, table.grown, table.fresh) == (263 * width, 3 * width, padding * width)
    assert table.dropped == (SOURCE.model.language.vocabulary_rows - 263) * width
    assert (leaves[POSITIONS].carried, leaves[POSITIONS].grown) == (66 * width, 16 * width)
    counts = counts_by_part(growth)
    assert counts["classifier"] == {"carried": 0, "grown": 0, "fresh": 8 * 3 + 3, "dropped": 0}
    assert counts["total"]["carried"] + counts["total"]["grown"] + counts["total"]["fresh"] == sum(
        leaf.size for leaf in TARGET.leaves.values())
    assert counts["total"]["carried"] + counts["total"]["dropped"] == sum(leaf.size for leaf in SOURCE.leaves.values())
    printed = growth_table(growth)
    for words in ("263 of 266 tokens carried by name; 1 copied", "hand 0 carried, 1 copied, 1 new", "babyai 9 dropped",
                  "80 positions, of 64 in the checkpoint, which the new ones repeat", "has no class head"):
        assert words in printed
    assert {one["field"] for one in growth_json(growth)["fields"]} == {
        "config.model.language.positions", "config.model.classes", "config.model.mae.mask_ratio"}


def test_an_image_encoder_becomes_a_video_encoder_that_encodes_every_frame_as_before():
    source, target = agent(ARM), agent(ARM, **{"vision.temporal_attention": True, "vision.temporal_order": "before"})
    params, made, growth = grown(source, target)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16, 3), np.uint8)
    alone, clip = np.arange(3, dtype=np.int32)[None].repeat(2, 0), np.zeros((2, 3), np.int32)

    def encoder(model: ModelConfig) -> Any:
        return quick_jit(lambda params, pixels, clips: Agent(model).apply({"params": params}, pixels, clips,
                                                                          method="encode"))

    image, video = encoder(source.model), encoder(target.model)
    np.testing.assert_allclose(video(made, pixels, alone), image(params, pixels, alone), atol=1e-5)
    # In any clip the temporal attention adds zero, whatever it attends to.
    other = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + 1 if "temporal" in str(path) and "'out'" not in str(path) else leaf, made)
    assert same(video(other, pixels, clip), video(made, pixels, clip))
    assert counts_by_part(growth)["vision"]["dropped"] == 0
    assert "temporal attention is added; its output starts at zero" in growth_table(growth)


def test_temporal_attention_is_dropped_and_the_rest_carried():
    source = agent(ARM, **{"vision.temporal_attention": True})
    params, made, growth = grown(source, agent(ARM))
    assert all(leaf is flat(params)[path] for path, leaf in flat(made).items())
    assert "no temporal attention here" in growth_table(growth)
    assert counts_by_part(growth)["vision"]["dropped"] > 0


def test_fewer_positions_are_the_first_ones():
    params, made, growth = grown(agent(ARM), agent(ARM, **{"language.positions": 20}))
    assert same(flat(made)[POSITIONS], flat(params)[POSITIONS][:22])
    assert counts_by_part(growth)["language"]["dropped"] == 44 * 12


def test_a_table_of_positions_is_resized_for_images_of_another_size():
    source = agent(ARM, **{"vision.positions": "clip"})
    target = agent(ARM, **{"vision.positions": "clip", "vision.image_size": 24})
    params, made, growth = grown(source, target, interpolate_positions=True)
    old, new = (flat(tree)["vision/position_embedding"] for tree in (params, made))
    assert new.shape == (1 + 36, 8)
    assert same(new[0], old[0])
    np.testing.assert_allclose(new[1:].mean(axis=0), old[1:].mean(axis=0), atol=0.1)
    assert counts_by_part(growth)["vision"]["grown"] == 36 * 8
    _, _, growth = grown(agent(ARM), agent(ARM, **{"vision.image_size": 24}), interpolate_positions=True)
    assert growth.is_identity  # fixed positions have no parameters
    assert [one.name for one in growth.fields] == ["vision.image_size"]


@pytest.mark.parametrize(("changes", "init", "part", "reason"), [
    ({"mae.heads": 2}, {}, "mae", "another MAE decoder"),
    ({"mae.width": 8}, {}, "mae", "another MAE decoder"),
    ({"classes": 4}, {}, "classifier", "another number of classes"),
    ({}, {"fresh": ("mae/.*",)}, "mae", "config.init.fresh has 'mae/.*'"),
    ({}, {"fresh": ("classifier/.*",)}, "classifier", "config.init.fresh has 'classifier/.*'"),
])
def test_a_decoder_or_class_head_is_fresh_where_it_differs_or_on_request(changes: Any, init: Any, part: str,
                                                                         reason: str):
    source, target = agent(ARM, classes=3), agent(ARM, **{"classes": 3, **changes})
    growth = plan_growth(source, target, InitConfig(checkpoint="OLD", **init))
    for leaf in growth.leaves:
        assert leaf.is_carried != leaf.path.startswith(f"{part}/")
        assert leaf.is_carried or leaf.reason == reason
    counts = counts_by_part(growth)[part]
    assert counts["fresh"] == sum(leaf.size for path, leaf in target.leaves.items() if path.startswith(f"{part}/"))
    assert counts["dropped"] == sum(leaf.size for path, leaf in source.leaves.items() if path.startswith(f"{part}/"))


def test_fresh_parameters_are_those_of_the_initialiser_and_not_of_the_checkpoint():
    params, made, _ = grown(agent(ARM, classes=3), agent(ARM, classes=2), fresh=("mae/mask_token",))
    assert np.abs(made["classifier"]["kernel"]).max() > 0
    assert not same(made["mae"]["mask_token"], params["mae"]["mask_token"])
    assert same(made["mae"]["input"]["kernel"], params["mae"]["input"]["kernel"])


@pytest.mark.parametrize(("field", "value", "hint"), [
    ("vision.width", 16, ""), ("vision.depth", 3, ""), ("vision.mlp_width", 24, ""), ("vision.patch_size", 8, ""),
    ("vision.positions", "clip", ""), ("language.width", 24, ""), ("language.depth", 1, ""),
    ("language.mlp_width", 8, ""), ("language.heads", 3, ""),
    ("language.positions", 65, "config.init.more_positions=True"),
    ("vision.image_size", 24, "config.init.interpolate_positions=True"),
])
def test_what_cannot_be_mapped_is_refused_with_both_sizes(field: str, value: Any, hint: str):
    source = agent(ARM)
    with pytest.raises(ValueError, match="config.init.checkpoint=OLD") as refusal:
        plan_growth(source, agent(ARM, **{field: value}), InitConfig(checkpoint="OLD"))
    [line] = str(refusal.value).splitlines()[1:]
    part, name = field.split(".")
    assert line.startswith(f"  config.model.{field}: {getattr(getattr(TINY, part), name)!r} there, {value!r} here")
    assert hint in line


def test_all_fields_that_cannot_be_mapped_are_in_one_message():
    both = {"vision.temporal_attention": True}
    with pytest.raises(ValueError, match=r"(?s)vision.width: 8 there.*temporal_order: 'after' there.*depth: 2 there"):
        plan_growth(agent(ARM, **both), agent(ARM, **both, **{
            "vision.width": 16, "vision.temporal_order": "before", "language.depth": 1}), InitConfig(checkpoint="OLD"))


def test_a_checkpoint_that_shares_nothing_is_refused():
    source, target = agent(ARM), agent(ARM)
    with pytest.raises(ValueError, match=r"config.init.checkpoint=OLD: config.init.fresh=.* leaves nothing of it"):
        plan_growth(source, target, InitConfig(checkpoint="OLD", fresh=(".*",)))
    other = Vocabulary.__new__(Vocabulary)
    other.__init__(NoText(), [HAND])
    unknown = AgentDescription(changed(TINY, **{"language.vocabulary_size": other.size}), other)
    with pytest.raises(ValueError, match=r"none of its 3 tokens is in config.vocabulary, .*hand there .*arm here"):
        plan_growth(unknown, target, InitConfig(checkpoint="OLD"))


@pytest.mark.parametrize(("pattern", "message"), [
    ("maee/.*", "matches no parameter path from end to end; near it: mae"),
    ("mae", "matches no parameter path"), ("(", "is not a regular expression"),
])
def test_a_pattern_of_fresh_that_matches_nothing_is_refused(pattern: str, message: str):
    with pytest.raises(ValueError, match=message) as refusal:
        plan_growth(agent(ARM), agent(ARM), InitConfig(checkpoint="OLD", fresh=(pattern,)))
    assert str(refusal.value).startswith(f"config.init.fresh[0]={pattern!r}")


class NoText(ByteTokenizer):
    """A tokenizer of one token that no other has."""

    size = 1

    def pieces(self) -> list[str]:
        return ["unlike any other"]

    def to_json(self) -> dict[str, Any]:
        return {"kind": "none"}
