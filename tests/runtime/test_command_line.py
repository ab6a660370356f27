"""Mistakes on the command line end in one line that names the flag, what was found and what is there; --help."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from agent_jax.runtime.command_line import USER_ERROR, parse_flags, with_lists


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config.train.stepz=3"], "config.train has no field 'stepz'; did you mean 'steps'?"),
        (["--config.modle.dtype=float32"], "config has no field 'modle'; did you mean 'model'?"),
        (["--config.seed.deep=1"], "config.seed is a value, not a group of fields"),
        (["--config.data.domains.babyai.paht=x"], "did you mean 'path'?"),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest_one(root, capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        parse_flags(["train", f"--config={root / 'configs' / 'babyai.py'}", *arguments])
    assert ended.value.code == USER_ERROR
    told = capsys.readouterr().err
    assert said in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize("form", [lambda file: [f"--config={file}"], lambda file: ["--config", str(file)]])
def test_an_unknown_variant_is_refused_with_those_there_are(root, capsys, form):
    with pytest.raises(SystemExit) as ended:
        parse_flags(["train", *form(f"{root / 'configs' / 'babyai.py'}:smoek")])
    assert ended.value.code == USER_ERROR
    told = capsys.readouterr().err
    assert all(part in told for part in ("'smoek'", "did you mean 'smoke'?", "'' (no colon), smoke")), told


def test_an_argument_that_is_no_flag_is_refused(root, capsys, monkeypatch):
    arguments, values = ["train", f"--config={root / 'configs' / 'babyai.py'}:smoke", "extra"], flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    monkeypatch.setattr(flags, "FLAGS", values)
    with pytest.raises(SystemExit) as ended:
        parse_flags(arguments)
    assert ended.value.code == USER_ERROR
    told = capsys.readouterr().err
    assert all(part in told for part in ("unexpected arguments: extra", "--config.FIELD=VALUE")), told


def test_a_missing_config_file_is_named(capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        parse_flags(["train", "--config", str(tmp_path / "none.py:smoke")])
    assert ended.value.code == USER_ERROR
    assert "none.py:smoke: no such file" in capsys.readouterr().err


def test_a_command_without_a_config_is_told_what_is_missing(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_flags(["train", "--workdir=x"])
    assert ended.value.code == USER_ERROR
    assert "--config is missing; expected --config=FILE.py" in capsys.readouterr().err


def test_help_of_train_names_the_config_and_the_flags_of_several_processes():
    done = subprocess.run([sys.executable, "-m", "agent_jax.train", "--help"], capture_output=True, text=True,
                          timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    for flag in ("--config", "--config.FIELD=VALUE", "--workdir", "--json", "--coordinator", "--processes", "--process",
                 "--join_timeout", "--heartbeat_timeout", "--stall_timeout"):
        assert flag in done.stdout


def test_commands_run_from_the_folder_that_holds_the_clone(root: Path, tmp_path: Path):
    """A folder of the package's name in the working directory must not be taken for the package."""
    try:
        importlib.metadata.distribution("agent_jax")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs agent_jax installed, as by `pip install -e`")
    (tmp_path / "agent_jax").symlink_to(root)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program = "from agent_jax import __version__; from agent_jax.data.__main__ import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", ["steps/a,steps/b", "('steps/a', 'steps/b')", '["steps/a", "steps/b"]'])
def test_lists_are_written_in_any_of_three_forms(root, text):
    config, name = f"--config={root / 'configs' / 'babyai.py'}", "--config.data.domains.babyai.cameras"
    expected = "('steps/a', 'steps/b')"
    assert with_lists(["train", config, f"{name}={text}"])[2] == f"{name}={expected}"
    assert with_lists(["train", config, name, text])[2:] == [name, expected]
    brightness = "--config.data.augmentation.brightness"
    assert with_lists(["train", config, f"{brightness}=0.7,1.4"])[2] == f"{brightness}=(0.7, 1.4)"
    assert with_lists(["train", config, "--config.seed=3"])[2] == "--config.seed=3"
    with pytest.raises(flags.Error, match=r"cameras: \('steps/a: found no list, expected a,b"):
        with_lists(["train", config, f"{name}=('steps/a"])
