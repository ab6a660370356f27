"""What config.init.checkpoint may name, and `python -m agent_jax.convert grow`, which prints the table for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from random_huggingface import save_language, save_vision
from tiny_checkpoints import Made, make_checkpoint

from agent_jax.checkpoints.checkpoint import DamagedCheckpointError
from agent_jax.checkpoints.fingerprint import flat
from agent_jax.config import InitConfig, presets
from agent_jax.convert.__main__ import main
from agent_jax.convert.grow.source import Source, located_checkpoint, with_source
from agent_jax.models.agent import Params


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_checkpoint(tmp_path_factory.mktemp("grow") / "run", ("table",), ema=0.9)


def read(init: InitConfig) -> tuple[str, Params]:
    """Name and parameters of the source."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def use(source: Source) -> tuple[str, Params]:
        shapes = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
                  for path, leaf in source.agent.leaves.items()}
        return source.name, source.read(shapes)

    return with_source(init, use)[0]


def equal(one: Params, other: Params) -> bool:
    a, b = flat(one), flat(other)
    return a.keys() == b.keys() and all(np.array_equal(a[path], b[path]) for path in a)


def test_raw_or_averaged_parameters_of_a_run(made: Made):
    name, params = read(InitConfig(checkpoint=str(made.path)))
    assert name == str(made.path / "7")
    assert equal(params, made.raw)
    name, params = read(InitConfig(checkpoint=str(made.path / "7"), weights="averaged"))
    assert name == f"{made.path / '7'}, averaged parameters"
    assert equal(params, made.average)


def test_a_run_without_an_average_gives_its_last_parameters(tmp_path: Path):
    made = make_checkpoint(tmp_path / "run", ("table",))
    name, params = read(InitConfig(checkpoint=str(made.path), weights="averaged"))
    assert name.endswith("7, which keeps no average")
    assert equal(params, made.raw)


def test_the_best_step_of_a_run_is_a_path_though_no_folder_has_its_name(made: Made):
    assert str(located_checkpoint(f"{made.path}/best")) == f"{made.path}/best"
    with pytest.raises(FileNotFoundError, match="none: not found"):
        located_checkpoint(f"{made.path}/none")


def test_what_is_no_agent_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    save_vision(tmp_path / "clip")
    save_language(tmp_path / "opt")
    for folder, part in (("clip", "vision"), ("opt", "language")):
        with pytest.raises(ValueError, match=rf"found Hugging Face {part} weights.*--config.init.pretrained.{part}="):
            located_checkpoint(str(tmp_path / folder))
    with pytest.raises(FileNotFoundError, match="lab/none: not a local path.*not available from the hub"):
        located_checkpoint("lab/none")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(FileNotFoundError, match="^runs/none: not found;"):  # a path, not a name of the hub
        located_checkpoint("runs/none")


def test_damaged_steps_are_passed_over_and_a_named_one_is_refused(made: Made, tmp_path: Path):
    run = Path(shutil.copytree(made.path, tmp_path / "run"))
    shutil.copytree(run / "7", run / "9")
    (run / "9" / "meta" / "data.json").write_text("{")
    found, damaged = with_source(InitConfig(checkpoint=str(run)), lambda source: source.name)
    assert (found, damaged) == (str(run / "7"), (9,))
    with pytest.raises(DamagedCheckpointError):
        with_source(InitConfig(checkpoint=str(run / "9")), lambda source: source.name)


CONFIG = '''
import json
from agent_jax.config import from_config_dict, to_config_dict
def get_config():
    config = to_config_dict(from_config_dict(json.loads({saved!r}))).unlock()
    config.vocabulary.blocks = ("babyai", "my_arm")
    config.model.vision.temporal_attention = True
    config.data.domains.table.action_spec = {spec!r}
    return config.lock()
'''


@pytest.fixture
def config(made: Made, tmp_path: Path) -> Path:
    """The checkpoint's config with another block and a video encoder."""
    spec = presets.arm_spec("my_arm", names=("dx", "grip"), bounds="quantiles", count=3)
    saved = json.loads((made.path / "7" / "meta" / "data.json").read_text())["config"]
    file = tmp_path / "my_robot.py"
    file.write_text(CONFIG.format(saved=json.dumps(saved), spec=spec))
    return file


def test_the_command_prints_the_table_and_writes_it_as_json(made: Made, config: Path, tmp_path: Path, capsys):
    place = tmp_path / "table.json"
    assert main(["grow", str(made.path), "--config", str(config), "--config.model.classes=2", "--json",
                 str(place)]) == 0
    printed = capsys.readouterr().out
    for words in (str(made.path / "7"), "vision.temporal_attention: False there, True here", "carried",
                  "dropped", "the checkpoint has no class head", "babyai 9 carried; my_arm 0", "iafm 1,313 dropped"):
        assert words in printed
    content = json.loads(place.read_text())
    assert content["checkpoint"] == str(made.path / "7")
    assert content["parts"]["classifier"] == {"carried": 0, "grown": 0, "fresh": 66, "dropped": 0}
    assert content["total"]["carried"] == sum(part["carried"] for part in content["parts"].values())
    assert content["tokens"]["dropped"] == {"iafm": 1313}


def test_the_command_takes_the_checkpoint_of_the_config_and_refuses_what_cannot_be_mapped(made: Made, config: Path,
                                                                                         capsys):
    checkpoint = f"--config.init.checkpoint={made.path}"
    assert main(["grow", "--config", str(config), checkpoint, "--config.init.copy_tokens=my_arm=iafm/STARTACTION"]) == 0
    assert "copied" in capsys.readouterr().out
    for arguments, message in (([], "config.init.checkpoint: empty"),
                               ([checkpoint, "--config.model.language.width=48"], "language.width: 24 there, 48 here"),
                               ([checkpoint, "--config.init.frsh=a"], "did you mean 'fresh'"),
                               ([checkpoint, "--bogus"], "bogus")):
        assert main(["grow", "--config", str(config), *arguments]) == 2
        assert message in capsys.readouterr().err
    assert main(["grow", "--config", str(config), checkpoint, "--config.data.domains.table.path=gone"]) == 2
    assert "config.data.domains.table.path=gone: not found" in capsys.readouterr().err
    assert main(["grow", "--config", "none.py", checkpoint]) == 2
    assert "none.py: no such file" in capsys.readouterr().err
