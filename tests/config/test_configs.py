from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from absl import flags
from config_files import load_config

from agent_jax.actions import ActionSpec, Bins, BoundSpec, Group, StateSpec
from agent_jax.actions.declarations import closed, vocabulary_blocks
from agent_jax.actions.vocabulary import Vocabulary
from agent_jax.config import (
    AugmentationConfig,
    Config,
    LanguageConfig,
    MaeConfig,
    VisionConfig,
    from_config_dict,
    presets,
    to_config_dict,
)

VARIANTS = {
    "default": ["", "paper", "code"],
    "babyai": ["", "smoke"],
    "language_table": ["", "accelerator", "smoke"],
    "metaworld": ["", "smoke"],
    "pretrain_mini": ["", "images", "smoke"],
    "finetune/mini": ["babyai", "metaworld", "vizdoom", "pusht", "captions", "smoke"],
    "vizdoom": ["", "smoke"],
    "tpu_v4": ["", "opt-1.3b", "opt-6.7b", "smoke"],
    "tpu_v5e": [""],
    "gpu": ["", "one", "node", "nodes", "opt-1.3b", "opt-6.7b"],
    "finetune/language_table": ["", "replay", "smoke"],
    **{f"finetune/{name}": ["", "smoke"]
       for name in ("calvin", "minecraft", "bleeding_edge", "captions", "vqa", "rass")},
    "finetune/my_robot": ["", "lora", "scratch", "smoke"],
}
HAS_PUSHT = importlib.util.find_spec("gym_pusht") is not None  # it is in no extra
EVERY_CONFIG = [f"{name}.py:{variant}".rstrip(":") for name, variants in VARIANTS.items() for variant in variants
                if variant != "pusht" or HAS_PUSHT]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test here runs from a directory that is not the checkout's."""
    monkeypatch.chdir(tmp_path)


def test_every_config_file_is_tested(root: Path) -> None:
    configs = root / "configs"
    assert {path.relative_to(configs).with_suffix("").as_posix() for path in configs.rglob("*.py")} == set(VARIANTS)


@pytest.mark.parametrize("name", EVERY_CONFIG)
def test_a_config_loads_from_any_directory_and_is_sound(root: Path, name: str) -> None:
    config = load_config(root, name)
    assert config.is_locked
    made = from_config_dict(config)
    assert from_config_dict(json.loads(json.dumps(dataclasses.asdict(made)))) == made


@pytest.mark.parametrize("name", VARIANTS)
def test_an_unknown_variant_is_refused_with_those_there_are(root: Path, name: str) -> None:
    with pytest.raises(flags.IllegalFlagValueError) as error:
        load_config(root, f"{name}.py:nonesuch")
    known = ", ".join(variant if variant else "'' (no colon)" for variant in VARIANTS[name])
    assert f"config variant: found 'nonesuch', expected one of {known}" in str(error.value)


def test_a_mistyped_variant_is_answered_with_the_nearest(root: Path) -> None:
    with pytest.raises(flags.IllegalFlagValueError, match=r"did you mean 'smoke'\?"):
        load_config(root, "babyai.py:smok")


@pytest.mark.parametrize("name", EVERY_CONFIG)
def test_a_docstring_of_a_config_names_its_variants_and_its_command(root: Path, name: str) -> None:
    file, _, variant = name.partition(":")
    text = (root / "configs" / file).read_text(encoding="utf-8").split('"""')[1]
    assert f"python -m agent_jax.train --config configs/{file}" in text
    assert not variant or f":{variant}`" in text


@pytest.mark.parametrize("name", EVERY_CONFIG)
def test_every_window_of_a_config_fits_the_positions_of_its_model(root: Path, name: str) -> None:
    config = from_config_dict(load_config(root, name))
    vocabulary = Vocabulary.build("bytes", vocabulary_blocks(config.vocabulary.blocks, config.data.declared_specs))
    for domain in config.data.domains.values():
        spec = ActionSpec.from_dict(closed(domain.action_spec, None, name)) if domain.action_spec else None
        state = StateSpec.from_dict(domain.state_spec) if domain.state_spec else None
        tokens = sum(BoundSpec(part, vocabulary).max_length for part in (spec, state) if part is not None)
        images = len(domain.cameras) * (1 + config.model.vision.patches)  # evaluation and acting see all patches
        answer = domain.max_answer if domain.layout == "answer" else 0
        assert domain.max_text + domain.window * (images + tokens) + answer <= config.model.language.positions


@pytest.mark.parametrize("name", EVERY_CONFIG)
def test_a_config_acts_only_in_levels_it_was_shown(root: Path, name: str) -> None:
    config = from_config_dict(load_config(root, name))
    assert set(config.closed_loop.episodes) <= set(config.data.demonstrations.episodes)
    for domain, episodes in config.closed_loop.domains.items():
        assert set(episodes) <= set(config.data.demonstrations_of(domain).episodes)
    assert config.closed_loop.environment in ("", config.data.demonstrations.environment)


def test_the_default_config_is_the_default_of_every_field(root: Path) -> None:
    assert from_config_dict(load_config(root, "default.py")) == Config()


def test_the_presets_are_the_two_readings_of_the_paper(root: Path) -> None:
    def reading(name: str) -> tuple[str, str, str]:
        config = from_config_dict(load_config(root, name))
        return config.model.vision.positions, config.model.visual_tokens, config.loss.form

    assert reading("default.py:paper") == ("sincos", "all", "eq5")
    assert reading("default.py:code") == ("clip", "visible", "mean")


@pytest.mark.parametrize("name", ["language_table.py", "language_table.py:accelerator", "tpu_v4.py", "tpu_v5e.py",
                                  "gpu.py", "gpu.py:nodes"])
def test_the_large_configs_train_the_full_size_model(root: Path, name: str) -> None:
    model = from_config_dict(load_config(root, name)).model
    assert model.vision == VisionConfig()
    assert dataclasses.replace(model.language, dropout=0.1) == LanguageConfig()
    assert dataclasses.replace(model.mae, mask_ratio=0.75) == MaeConfig()


def test_the_tpu_smoke_run_is_a_short_one_on_eight_devices_of_a_mesh_of_three_axes(root: Path) -> None:
    config = from_config_dict(load_config(root, "tpu_v4.py:smoke"))
    assert (config.mesh.data, config.mesh.fsdp, config.mesh.tensor) == (2, 2, 2)
    assert config.mesh.platform == "cpu"
    assert config.train.steps == 2
    assert config.train.batch_size % 4 == 0  # rows are divided over data and fsdp


def test_babyai_is_evaluated_on_200_episodes_of_go_to_local(root: Path) -> None:
    assert from_config_dict(load_config(root, "babyai.py")).closed_loop.episodes["GoToLocal"] == 200


def test_a_flag_reaches_a_field_that_a_config_file_has_set(root: Path) -> None:
    config = load_config(root, "tpu_v4.py", "--config.data.domains.minecraft.path=/data", "--config.mesh.fsdp=2")
    made = from_config_dict(config)
    assert made.data.domains["minecraft"].path == "/data"
    assert made.data.domains["minecraft"].window == 9
    assert made.mesh.fsdp == 2


def test_pretraining_is_the_papers_recipe_on_its_four_data_sets(root: Path) -> None:
    config = from_config_dict(load_config(root, "tpu_v4.py"))
    windows = {"language_table": 4, "calvin": 4, "minecraft": 9, "bleeding_edge": 9}
    assert {name: domain.window for name, domain in config.data.domains.items()} == windows
    assert {(domain.stride == domain.window, domain.weight) for domain in config.data.domains.values()} == {(True, 1)}
    samples = 525_309 + 256_867 + 1_233_659 + 360_566
    assert 100 * samples <= config.train.steps * config.train.batch_size < 100.1 * samples


def test_domains_that_are_left_out_are_as_if_they_were_not_in_the_config(root: Path) -> None:
    config = from_config_dict(load_config(root, "tpu_v4.py", "--config.data.leave_out=('bleeding_edge', 'calvin')"))
    assert set(config.data.domains) == {"language_table", "minecraft"}
    assert config.data.leave_out == ()
    with pytest.raises(ValueError, match=r"config\.data\.leave_out=.*found 'mincraft', .*minecraft"):
        from_config_dict(load_config(root, "tpu_v4.py", "--config.data.leave_out=('mincraft',)"))


@pytest.mark.parametrize("name", ["babyai", "metaworld", "vizdoom", "language_table", "clips", "clip_classes"])
def test_any_domain_of_the_small_pre_training_may_be_left_out(root: Path, name: str) -> None:
    config = from_config_dict(load_config(root, "pretrain_mini.py", f"--config.data.leave_out=('{name}',)"))
    assert name not in {*config.data.domains, *config.closed_loop.domains}
    Vocabulary.build("bytes", vocabulary_blocks(config.vocabulary.blocks, config.data.declared_specs))


def test_changes_are_applied_in_order() -> None:
    def steps(number: int) -> presets.Change:
        def change(config: presets.Draft) -> None:
            config.train.steps = number

        return change

    made = presets.build("x", {"": [], "x": [steps(1), steps(2)]})
    assert made.train.steps == 2
    assert presets.build("", {"": [], "x": [steps(1)]}) == to_config_dict(Config())


def test_a_change_of_an_unknown_field_is_refused() -> None:
    def mistyped(config: presets.Draft) -> None:
        config.train.step = 3

    with pytest.raises(ValueError, match=r"config\.train\.step: no such field; did you mean 'steps'\?"):
        presets.build("", {"": [mistyped]})


def test_a_domain_of_an_unknown_field_is_refused() -> None:
    with pytest.raises(TypeError, match="windows"):
        presets.domain(windows=3)


def test_a_small_model_has_one_width_and_a_divisible_number_of_heads() -> None:
    config = to_config_dict(Config()).unlock()
    presets.small_model(config, image_size=56, patch_size=8, width=96, heads=4, vision_depth=2, language_depth=3,
                        positions=256)  # fmt: skip
    model = from_config_dict(config).model
    assert model.vision.patches == 49
    assert {model.vision.width, model.language.width, model.mae.width} == {96}
    assert (model.vision.depth, model.language.depth, model.mae.depth) == (2, 3, 1)
    assert model.language.dropout == 0.0


def test_a_spec_of_an_arm_is_a_short_way_to_write_the_long_one() -> None:
    spec = ActionSpec.from_dict(presets.arm_spec(
        "my_arm", names=("dx", "grip"), low=(-0.05, 0), high=(0.05, 1), unit=("m", ""), rate_hz=5, frame="gripper",
        absolute=True, key="pose", count=21))
    long = ActionSpec("my_arm", "my_arm", (Group("STARTACTION", (
        Bins("pose", 0, "dx_", -0.05, 0.05, name="dx", unit="m"), Bins("pose", 1, "grip_", 0, 1, name="grip"),
    ), "ENDOFACTION"),), rate_hz=5, frame="gripper", absolute=True)
    assert spec == long
    state = StateSpec.from_dict(presets.state_spec("my_arm", names=("x", "y"), key="pose", low=0, high=1, block="arms"))
    assert (state.block, [part.count for part in state.parts if isinstance(part, Bins)]) == ("arms", [256, 256])
    assert not set(state.tokens()) & set(spec.tokens())


@pytest.mark.parametrize(("fields", "message"), [
    ({"low": 0, "high": 1, "bounds": "min_max"}, "found both of bounds and low, high"),
    ({}, "found neither of bounds and low, high"),
    ({"low": (0, 0, 0), "high": 1}, "found 3 values of low for 2 names"),
    ({"bounds": "minmax"}, "found 'minmax', expected one of min_max, .* did you mean 'min_max'"),
    ({"low": 0, "high": 1, "names": ("x", "x")}, "expected no repetition"),
    ({"low": 1, "high": 0}, r"action\[0\] \(x\): found bounds low=1.0, high=0.0"),
])
def test_a_spec_of_an_arm_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        presets.arm_spec("my_arm", **{"names": ("x", "y"), **fields})


def test_only_the_pre_training_of_the_paper_augments(root: Path) -> None:
    augmenting = [name for name in EVERY_CONFIG
                  if from_config_dict(load_config(root, name)).data.augmentation != AugmentationConfig()]
    assert augmenting == [name for name in EVERY_CONFIG if name.startswith(("tpu_", "gpu"))]
    paper = AugmentationConfig(brightness=(0.7, 1.4), saturation=(0.7, 1.4), hue=0.05)
    assert from_config_dict(load_config(root, "tpu_v4.py")).data.augmentation == paper
