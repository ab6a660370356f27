"""What this machine lacks for a run is said at once, in one message, before anything is made."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import small_config, store_directory

from agent_jax.train.preflight import check_machine, describe, facts, set_platform


def test_a_run_that_can_begin_is_not_refused_and_its_plan_names_its_size(tmp_path_factory: pytest.TempPathFactory):
    config = small_config(store_directory(tmp_path_factory.getbasetemp()))
    check_machine(config)
    plan = describe(config)
    assert "20 steps of 8 rows in 1 microbatch(es)" in plan
    assert "tiles (window 2)" in plan
    assert "parameters" in plan


def test_everything_missing_is_named_in_one_message_with_its_flag(tmp_path: Path):
    config = small_config(tmp_path / "no-data", **{
        "mesh.platform": "tpu", "vocabulary.tokenizer": str(tmp_path / "no-tokenizer"),
        "init.pretrained.vision": str(tmp_path / "no-clip"), "init.checkpoint": str(tmp_path / "no-run")})
    with pytest.raises(ValueError, match="this run cannot begin on this machine") as refusal:
        check_machine(config)
    message = str(refusal.value)
    for part in ("config.mesh.platform='tpu'", "8 device(s) of 'cpu'", 'pip install -e ".[tpu]"',
                 "--config.mesh.platform=cpu", f"config.data.domains.tiles.path={tmp_path / 'no-data'}: not found",
                 "--config.data.domains.tiles.path=DIR", "--config.vocabulary.tokenizer=PATH",
                 "--config.init.pretrained.vision=PATH", "--config.init.checkpoint=PATH", "the plan of this run:"):
        assert part in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("attention", "platform"), [("cudnn", "gpu"), ("splash", "tpu")])
def test_a_kernel_of_another_platform_is_refused(tmp_path: Path, attention: str, platform: str):
    config = small_config(tmp_path, **{"model.attention": attention, "model.dtype": "bfloat16"})
    with pytest.raises(ValueError, match=f"config.model.attention='{attention}' runs on '{platform}', but JAX finds "
                                         "'cpu' here; pass --config.model.attention=xla"):
        check_machine(config)


def test_a_domain_without_a_path_needs_demonstrations_to_be_gathered(tmp_path: Path):
    changes = {"data.demonstrations.environment": "babyai", "data.directory": str(tmp_path)}
    with pytest.raises(ValueError, match=r"no data for domain 'tiles': pass --config.data.domains.tiles.path=DIR"):
        check_machine(small_config(Path(""), **{"data.domains.tiles.path": ""}))
    check_machine(small_config(Path(""), **{"data.domains.tiles.path": "", **changes}))


def test_a_domain_gathers_its_own_demonstrations(tmp_path: Path):
    own = {"data.domains.tiles.path": "", "data.directory": str(tmp_path)}
    config = small_config(Path(""), **own, **{"data.domains.tiles.demonstrations.environment": "babyai"})
    check_machine(config)
    assert list(config.data.gathered) == ["tiles"]
    missing = small_config(tmp_path / "gone", **{"data.domains.tiles.demonstrations.environment": "babyai"})
    with pytest.raises(ValueError, match=r"gone: not found; .*--config\.data\.leave_out=\"\('tiles',\)\""):
        check_machine(missing)
    assert not missing.data.gathered


def test_processes_compare_every_field_of_the_config_every_file_of_code_and_the_versions(tmp_path: Path):
    one, other = (facts(small_config(tmp_path, seed=seed), "runs/a") for seed in (0, 1))
    assert {name for name in one if one[name] != other[name]} == {"config.seed"}
    assert one["config.data.domains.tiles.path"] == str(tmp_path)
    assert {"--workdir", "python", "jax", "jaxlib"} <= one.keys()
    assert {"agent_jax/train/preflight.py", "agent_jax/data/store/store.py"} <= one.keys()


def test_cpu_devices_that_do_not_divide_among_the_processes_are_refused(tmp_path: Path):
    config = small_config(tmp_path, **{"mesh.platform": "cpu", "mesh.data": 2, "mesh.fsdp": 3})
    with pytest.raises(ValueError, match=r"data=2, fsdp=3, tensor=1: 6 CPU devices do not divide among 4 processes"):
        set_platform(config, 4)


def test_paths_are_read_as_they_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "bytes_bpe").mkdir()
    monkeypatch.chdir(tmp_path)
    check_machine(small_config(Path("~"), **{"vocabulary.tokenizer": "bytes_bpe", "init.checkpoint": "~/bytes_bpe"}))


def test_weights_of_a_first_step_may_be_gone_when_a_run_goes_on(tmp_path: Path):
    config = small_config(tmp_path, **{"init.checkpoint": str(tmp_path / "gone"),
                                       "init.pretrained.language": str(tmp_path / "gone")})
    check_machine(config, resumes=True)
    with pytest.raises(ValueError, match="config.init.checkpoint=.*gone: not found"):
        check_machine(config)
