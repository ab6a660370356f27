from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from agent_jax.actions.simulators import METAWORLD
from agent_jax.config import (
    ClosedLoopConfig,
    Config,
    DataConfig,
    DemonstrationsConfig,
    DomainConfig,
    LanguageConfig,
    LossConfig,
    MaeConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    VisionConfig,
    VocabularyConfig,
    from_config_dict,
    to_config_dict,
)
from agent_jax.config.checks import validate

FULL = Config(  # every kind of field with a value that is not its default
    seed=3,
    model=ModelConfig(vision=VisionConfig(width=384, heads=6), dtype="bfloat16", visual_tokens="visible"),
    vocabulary=VocabularyConfig(tokenizer="somewhere", blocks=("iafm", "babyai")),
    loss=LossConfig(form="eq5", mae=0.5),
    data=DataConfig(
        domains={
            "table": DomainConfig(path="/data/table", action_spec={"groups": [{"parts": [{"low": -0.03}]}], "n": None}),
            "babyai": DomainConfig(weight=2.0),
        },
        demonstrations=DemonstrationsConfig(environment="babyai", episodes={"GoToLocal": 100}),
    ),
    optimizer=OptimizerConfig(freeze=("vision/.*",)),
    closed_loop=ClosedLoopConfig(episodes={"GoToLocal": 200}, video=False),
)


def changed(path: str, value: Any) -> ConfigDict:
    """The ConfigDict of FULL with one field set, whatever its type."""
    config = to_config_dict(FULL).unlock()
    *groups, name = path.split(".")
    holder = config
    for group in groups:
        holder = holder[group]
    with holder.ignore_type():
        holder[name] = value
    return config


def parse(tmp_path: Path, *overrides: str) -> Config:
    """The config that `--config FILE OVERRIDES` leads to, where FILE holds FULL."""
    file = tmp_path / "full.py"
    file.write_text(
        "import json\nfrom agent_jax.config import from_config_dict, to_config_dict\n"
        f"def get_config():\n    return to_config_dict(from_config_dict(json.loads({as_json(FULL)!r})))\n"
    )
    arguments = ["program", f"--config={file}", *overrides]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    values(arguments)
    return from_config_dict(values["config"].value)


def as_json(config: Config) -> str:
    return json.dumps(dataclasses.asdict(config))


@pytest.mark.parametrize("config", [Config(), FULL], ids=["default", "full"])
def test_a_config_survives_the_way_through_a_config_dict_and_through_json(config: Config) -> None:
    assert from_config_dict(to_config_dict(config)) == config
    assert from_config_dict(json.loads(as_json(config))) == config
    assert from_config_dict(json.loads(to_config_dict(config).to_json())) == config


def test_the_config_dict_is_locked_and_holds_every_field() -> None:
    config = to_config_dict(FULL)
    assert config.is_locked
    assert config.model.is_locked
    with pytest.raises(AttributeError, match='Did you mean "steps"'):
        config.train.step = 3
    assert json.loads(config.to_json()) == json.loads(as_json(FULL))


def test_a_missing_field_takes_its_default() -> None:
    assert from_config_dict({"train": {"steps": 7}}) == Config(train=TrainConfig(steps=7))


def test_a_spec_given_by_tuples_equals_the_one_read_back_from_json() -> None:
    spec = {"parts": ({"choices": (1, 2)},), "unit": None, "absolute": False}
    made = from_config_dict(changed("data.domains.babyai.action_spec", spec))
    assert made.data.domains["babyai"].action_spec == {
        "parts": [{"choices": [1, 2]}], "unit": None, "absolute": False,
    }  # fmt: skip
    assert from_config_dict(json.loads(as_json(made))) == made


def test_an_override_of_a_reference_reaches_the_fields_that_follow_it() -> None:
    config = to_config_dict(Config()).unlock()
    config.model.language.width = config.model.vision.get_ref("width")
    config.model.vision.width = 96
    assert from_config_dict(config).model.language.width == 96


@pytest.mark.parametrize(
    ("field", "hint"),
    [
        ("trian", "config.trian: no such field; did you mean 'train'?"),
        ("train.step", "config.train.step: no such field; did you mean 'steps'?"),
        ("data.domains.babyai.wieght", "config.data.domains.babyai.wieght: no such field; did you mean 'weight'?"),
        ("mesh.xyz", "config.mesh.xyz: no such field; known fields: data, fsdp, tensor, replica, platform"),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest_known_one(field: str, hint: str) -> None:
    with pytest.raises(ValueError, match="no such field") as error:
        from_config_dict(changed(field, 1))
    assert str(error.value) == hint


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("train.steps", 1.5, "config.train.steps: found 1.5 of type float, expected int"),
        ("train.steps", True, "config.train.steps: found True of type bool, expected int"),
        ("train.steps", None, "config.train.steps: found None of type NoneType, expected int"),
        ("closed_loop.video", 1, "config.closed_loop.video: found 1 of type int, expected bool"),
        ("optimizer.learning_rate", "1e-4", "config.optimizer.learning_rate: found '1e-4' of type str, expected float"),
        ("vocabulary.tokenizer", 3, "config.vocabulary.tokenizer: found 3 of type int, expected str"),
        ("vocabulary.blocks", "iafm", "config.vocabulary.blocks: found 'iafm', expected a tuple"),
        ("vocabulary.blocks", ("iafm", 3), "config.vocabulary.blocks[1]: found 3 of type int, expected str"),
        ("model.dtype", "int8", "config.model.dtype: found 'int8', expected one of 'float32', 'bfloat16'"),
        ("model.vision", 5, "config.model.vision: found 5, expected a group of fields"),
        ("data.domains", 5, "config.data.domains: found 5, expected a mapping"),
        ("data.domains.babyai", 5, "config.data.domains.babyai: found 5, expected a group of fields"),
        ("closed_loop.episodes.GoToLocal", 2.5,
         "config.closed_loop.episodes.GoToLocal: found 2.5 of type float, expected int"),
        ("data.domains.table.action_spec.n", b"x",
         "config.data.domains.table.action_spec.n: found b'x' of type bytes, expected a value that JSON can hold"),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_refused_by_its_path(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match="found") as error:
        from_config_dict(changed(field, value))
    assert str(error.value) == message


def test_an_integer_will_do_where_a_float_is_expected() -> None:
    rate = from_config_dict(changed("optimizer.clip_norm", 1)).optimizer.clip_norm
    assert rate == 1.0
    assert isinstance(rate, float)


def test_a_placeholder_that_nobody_filled_is_refused() -> None:
    with pytest.raises(ValueError, match=r"config\.vocabulary\.tokenizer: found None"):
        from_config_dict(changed("vocabulary.tokenizer", config_dict.placeholder(str)))


@pytest.mark.parametrize(
    ("flag", "field", "value"),
    [
        ("train.steps=12", "train.steps", 12),
        ("optimizer.learning_rate=3", "optimizer.learning_rate", 3.0),
        ("optimizer.learning_rate=1e-3", "optimizer.learning_rate", 1e-3),
        ("closed_loop.video=true", "closed_loop.video", True),
        ("vocabulary.tokenizer=/some where", "vocabulary.tokenizer", "/some where"),
        ("model.dtype=float32", "model.dtype", "float32"),
        ("optimizer.freeze=vision/.*", "optimizer.freeze", ("vision/.*",)),
        ("optimizer.freeze=()", "optimizer.freeze", ()),
        ("optimizer.learning_rate_factors=(('vision/.*',0.1),)", "optimizer.learning_rate_factors",
         (("vision/.*", 0.1),)),
        ("vocabulary.blocks=('iafm','a','b')", "vocabulary.blocks", ("iafm", "a", "b")),
        ("data.domains.babyai.path=/data", "data.domains.babyai.path", "/data"),
        ("data.domains.babyai.window=9", "data.domains.babyai.window", 9),
        ("data.domains.table.action_spec={'name':'x'}", "data.domains.table.action_spec", {"name": "x"}),
        ("data.domains={'new':{'path':'/n'}}", "data.domains", {"new": DomainConfig(path="/n")}),
        ("data.demonstrations.episodes.GoToLocal=7", "data.demonstrations.episodes", {"GoToLocal": 7}),
        ("closed_loop.episodes={'GoToObj':1,'Open':2}", "closed_loop.episodes", {"GoToObj": 1, "Open": 2}),
        ("data.augmentation.brightness=(0.7,1.4)", "data.augmentation.brightness", (0.7, 1.4)),
        ("mesh.data=-1", "mesh.data", -1),
    ],
)
def test_a_flag_overrides_a_field_of_every_kind(tmp_path: Path, flag: str, field: str, value: object) -> None:
    found: Any = parse(tmp_path, f"--config.{flag}")
    for name in field.split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    assert found == value
    assert type(found) is type(value)


def test_repeated_flags_fill_a_tuple(tmp_path: Path) -> None:
    config = parse(tmp_path, "--config.optimizer.freeze=vision/.*", "--config.optimizer.freeze=mae/.*")
    assert config.optimizer.freeze == ("vision/.*", "mae/.*")


def test_no_flag_changes_nothing(tmp_path: Path) -> None:
    assert parse(tmp_path) == FULL


def test_a_flag_of_the_wrong_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(flags.IllegalFlagValueError, match=r"--config\.train\.steps=many"):
        parse(tmp_path, "--config.train.steps=many")


def test_a_flag_of_an_unknown_field_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises((AttributeError, KeyError), match='Did you mean "dtype" instead of "dtipe"'):
        parse(tmp_path, "--config.model.dtipe=float32")


def test_a_config_file_that_is_not_there_is_named() -> None:
    arguments = ["program", "--config=/nowhere/no.py"]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    values(arguments)
    with pytest.raises(OSError, match=r"/nowhere/no\.py"):
        from_config_dict(values["config"].value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model.vision.patch_size", 15, "image_size=224 must be a multiple of patch_size=15"),
        ("model.vision.patch_size", 0, "image_size=224 must be a multiple of patch_size=0"),
        ("model.vision.heads", 5, "config.model.vision.width=384 must be a multiple of heads=5"),
        ("model.language.heads", 7, "config.model.language.width=768 must be a multiple of heads=7"),
        ("model.mae.heads", 0, "config.model.mae.width=768 must be a multiple of heads=0"),
        ("model.vision.depth", 0, "config.model.vision.depth=0 must be at least 1"),
        ("model.language.depth", 0, "config.model.language.depth=0 must be at least 1"),
        ("model.mae.depth", 0, "config.model.mae.depth=0 must be at least 1"),
        ("model.vision.width", 378, "config.model.vision.width=378 must be a multiple of 4"),
        ("model.unroll", 0, "config.model.unroll=0 must be at least 1"),
        ("model.vision.image_size", 0, "config.model.vision.image_size=0 must be at least 1"),
        ("model.language.positions", 0, "config.model.language.positions=0 must be at least 1"),
        ("model.language.vocabulary_multiple", 0, "config.model.language.vocabulary_multiple=0 must be at least 1"),
        ("data.workers", -1, "config.data.workers=-1 must be at least 0"),
        ("data.prefetch", -1, "config.data.prefetch=-1 must be at least 0"),
        ("data.frames_per_row", -1, "config.data.frames_per_row=-1 must be at least 0"),
        ("checkpoint.every", -5, "config.checkpoint.every=-5 must be at least 0"),
        ("model.mae.mask_ratio", 1.0, "mask_ratio=1.0 must lie between 0 and 1"),
        ("model.mae.mask_ratio", 0.0, "mask_ratio=0.0 must lie between 0 and 1"),
        ("model.language.dropout", 1.0, "dropout=1.0 must lie in [0, 1)"),
        ("train.accumulation", 3, "config.train.batch_size=256 must be a multiple of accumulation=3"),
        ("train.accumulation", 0, "config.train.batch_size=256 must be a multiple of accumulation=0"),
        ("train.batch_size", 0, "config.train.batch_size=0 must be a multiple of accumulation=1"),
        ("train.steps", 0, "config.train.steps=0 must be at least 1"),
        ("train.log_every", 0, "config.train.log_every=0 must be at least 1"),
        ("train.validation_batches", 0, "config.train.validation_batches=0 must be at least 1"),
        ("train.validate_every", -1, "config.train.validate_every=-1 must be at least 0"),
        ("train.picture_every", -1, "config.train.picture_every=-1 must be at least 0"),
        ("optimizer.learning_rate", 0.0, "config.optimizer.learning_rate=0.0 must be positive"),
        ("optimizer.learning_rate", float("nan"), "config.optimizer.learning_rate=nan must be positive"),
        ("optimizer.warmup", 1.0, "config.optimizer.warmup=1.0 is a share of the steps, in [0, 1)"),
        ("optimizer.learning_rate_factors", (("vision/.*", 0),), "learning_rate_factors[0]=('vision/.*', 0): expected"),
        ("optimizer.learning_rate_factors", (("vision/.*",),), "learning_rate_factors[0]=('vision/.*',): expected"),
        ("lora.rank", 0, "config.lora.rank=0 must be at least 1"),
        ("lora.scale", 0.0, "config.lora.scale=0.0 must be positive"),
        ("train.patience", -1, "config.train.patience=-1 must be at least 0"),
        ("checkpoint.best_metric", "acton", "checkpoint.best_metric='acton': expected 'loss', language, "),
        ("checkpoint.best_metric", "label", "checkpoint.best_metric='label': expected"),
        ("optimizer.ema", 1.0, "config.optimizer.ema=1.0 must lie in [0, 1)"),
        ("data.domains.table.window", 0, "config.data.domains.table: window=0 and stride=4 must be at least 1"),
        ("data.domains.table.actions_per_image", 0,
         "config.data.domains.table.actions_per_image=0 must be at least 1"),
        ("data.domains.table.actions_per_image", 3,
         "table.actions_per_image=3 must divide window=4, which counts actions; set actions_per_image to one of 1, "
         "2, 4, or window to 6"),
        ("data.domains.table.stride", 0, "config.data.domains.table: window=4 and stride=0 must be at least 1"),
        ("data.domains.babyai.weight", 0.0, "config.data.domains.babyai.weight=0.0 must be positive"),
        ("data.domains.babyai.max_text", 0, "config.data.domains.babyai.max_text=0 must be at least 1"),
        ("data.domains.table.cameras", (), "config.data.domains.table.cameras=(): expected at least one path"),
        ("data.domains.table.cameras", ("a", "a"), "cameras=('a', 'a'): expected at least one path, and none twice"),
        ("data.domains.table.layout", "answer",
         "config.data.domains.table.layout='answer' has no actions; leave action_spec and state_spec empty; expected"),
        ("data.domains.babyai.max_answer", 0, "config.data.domains.babyai.max_answer=0 must be at least 1"),
        ("data.domains.babyai.layout", "label", "layout='label' needs config.model.classes of at least 2; expected"),
        ("model.classes", -1, "config.model.classes=-1 must be at least 0"),
        ("data.demonstrations.noise", 1.0, "config.data.demonstrations.noise=1.0 must lie in [0, 1)"),
        ("data.demonstrations.episodes.GoToLocal", 0, "config.data.demonstrations.episodes.GoToLocal=0"),
        ("closed_loop.episodes.GoToLocal", 0, "config.closed_loop.episodes.GoToLocal=0 must be at least 1"),
        ("closed_loop.every", -1, "config.closed_loop.every=-1 must be at least 0"),
        ("closed_loop.processes", -1, "config.closed_loop.processes=-1 must be at least 0"),
        ("closed_loop.every", 5, "config.closed_loop.every=5 needs closed_loop.environment and closed_loop.episodes"),
        ("closed_loop.domains", {"babyai": {"GoToObj": 1}},
         r"config.closed_loop.domains: found babyai as well as closed_loop.environment='' and closed_loop.episodes="),
        ("data.domains.table.demonstrations.noise", 1.5, "config.data.domains.table.demonstrations.noise=1.5 must lie"),
        ("closed_loop.temperature", 0.0, "config.closed_loop.temperature=0.0 must be positive"),
        ("closed_loop.temperature", float("inf"), "config.closed_loop.temperature=inf must be positive and finite"),
        ("data.augmentation.brightness", (0.7,), "augmentation.brightness=(0.7,): expected (least, greatest) factor"),
        ("data.augmentation.saturation", (1.4, 0.7), "augmentation.saturation=(1.4, 0.7): expected (least, greatest)"),
        ("data.augmentation.hue", 0.6, "config.data.augmentation.hue=0.6 must lie in [0, 0.5]"),
        ("data.out_of_bounds", 5.0, "config.data.out_of_bounds=5.0 is a share of the steps, in [0, 1]"),
        ("train.rows_per_device", -1, "config.train.rows_per_device=-1 and accumulation=1: expected 0 or more"),
        ("mesh.replica", 0, "config.mesh: found {'replica': 0, 'data': -1, 'fsdp': 1, 'tensor': 1}"),
        ("mesh.fsdp", -1, "config.mesh: found {'replica': 1, 'data': -1, 'fsdp': -1, 'tensor': 1}"),
        ("mesh.tensor", 0, "config.mesh: found {'replica': 1, 'data': -1, 'fsdp': 1, 'tensor': 0}"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=r"must|expected|share") as error:
        from_config_dict(changed(field, value))
    assert message in str(error.value)


@pytest.mark.parametrize(("fields", "message"), [
    ({"window": 4}, "set config.data.domains.clips.video=True, or window=1 and one camera"),
    ({"window": 4, "video": True, "cameras": ("a", "b")}, "reads the CLS of one camera's clip; found 2 cameras"),
])
def test_a_label_is_of_one_clip(fields: dict[str, Any], message: str) -> None:
    model = ModelConfig(classes=3)
    with pytest.raises(ValueError, match="layout='label'") as error:
        validate(Config(model=model, data=DataConfig(domains={"clips": DomainConfig(layout="label", **fields)})))
    assert message in str(error.value)
    validate(Config(model=model, data=DataConfig(domains={
        "clip": DomainConfig(layout="label", window=4, video=True), "image": DomainConfig(layout="label", window=1)})))


def test_patches_and_rows_of_the_vocabulary_are_derived() -> None:
    assert VisionConfig().patches == 196
    assert LanguageConfig(vocabulary_size=51_578, vocabulary_multiple=128).vocabulary_rows == 51_584
    assert LanguageConfig(vocabulary_size=256, vocabulary_multiple=128).vocabulary_rows == 256


def test_a_config_cannot_be_changed_after_it_is_checked() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        MeshConfig().data = 2  # pyright: ignore[reportAttributeAccessIssue] - that is the point


def test_microbatches_are_counted_or_follow_a_limit_but_not_both() -> None:
    with pytest.raises(ValueError, match=r"rows_per_device=4 and accumulation=2: expected .* and accumulation=1"):
        validate(Config(train=TrainConfig(rows_per_device=4, accumulation=2)))
    validate(Config(train=TrainConfig(rows_per_device=4)))


@pytest.mark.parametrize(("model", "message"), [
    (ModelConfig(attention="cudnn"), "config.model.dtype='float32'; expected 'bfloat16', or attention='xla'"),
    (ModelConfig(attention="cudnn", dtype="bfloat16", mae=MaeConfig(heads=4)),
     "config.model.mae.width=768 / heads=4 makes heads of 192; expected a multiple of 8, at most 128"),
    (ModelConfig(attention="cudnn", dtype="bfloat16", language=LanguageConfig(width=24, heads=2)),
     "config.model.language.width=24 / heads=2 makes heads of 12; expected a multiple of 8, at most 128"),
])
def test_what_cudnns_attention_cannot_compute_is_refused(model: ModelConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(Config(model=model))


def several(**fields: Any) -> Config:
    """A run with a simulator of its own for one domain, a recorded one, and a run-wide simulator for no domain."""
    domains = {"arm": DomainConfig(demonstrations=DemonstrationsConfig("metaworld", {"reach": 3}, image_size=64)),
               "table": DomainConfig(path="/data/table"),
               "talk": DomainConfig(layout="answer", demonstrations=DemonstrationsConfig("clips", {"caption": 3}))}
    return Config(data=DataConfig(domains=domains), **fields)


def test_a_domain_has_its_own_demonstrations_or_those_of_the_run() -> None:
    data = several().data
    assert {name: one.environment for name, one in data.gathered.items()} == {"arm": "metaworld", "talk": "clips"}
    assert data.demonstrations_field("arm") == "config.data.domains.arm.demonstrations"
    wide = dataclasses.replace(data, domains={**data.domains, "tiles": DomainConfig()},
                               demonstrations=DemonstrationsConfig("babyai", {"GoToObj": 1}))
    assert {name: one.environment for name, one in wide.gathered.items()} == {
        "arm": "metaworld", "talk": "clips", "tiles": "babyai"}
    assert wide.demonstrations_field("tiles") == "config.data.demonstrations"


@pytest.mark.parametrize(("domains", "message"), [
    ({"arms": {"reach": 1}}, r"closed_loop\.domains\.arms: no such domain; did you mean 'arm'"),
    ({"table": {"reach": 1}}, r"closed_loop\.domains\.table: .*no simulator; set config\.data\.domains\.table\."),
    ({"talk": {"caption": 1}}, r"closed_loop\.domains\.talk: the domain's layout is 'answer', which has no actions"),
    ({"arm": {}}, r"closed_loop\.domains\.arm=\{\}: expected episodes by task"),
    ({"arm": {"reach": 0}}, r"closed_loop\.domains\.arm\.reach=0 must be at least 1"),
])
def test_domains_that_cannot_act_are_refused(domains: dict[str, dict[str, int]], message: str) -> None:
    validate(several(closed_loop=ClosedLoopConfig(domains={"arm": {"reach": 1}}, every=5)))
    with pytest.raises(ValueError, match=message):
        validate(several(closed_loop=ClosedLoopConfig(domains=domains)))


def test_a_domain_that_is_left_out_neither_acts_nor_has_a_vocabulary_block() -> None:
    made = to_config_dict(several(closed_loop=ClosedLoopConfig(domains={"arm": {"reach": 1}}))).unlock()
    made.data.domains.arm.action_spec = METAWORLD.to_dict()
    made.vocabulary.blocks = ("iafm", "metaworld")
    kept = from_config_dict(made)
    assert (kept.vocabulary.blocks, list(kept.closed_loop.domains)) == (("iafm", "metaworld"), ["arm"])
    made.data.leave_out = ("arm",)
    left = from_config_dict(made)
    assert (left.vocabulary.blocks, left.closed_loop.domains) == (("iafm",), {})
