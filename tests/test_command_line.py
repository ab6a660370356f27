"""Mistakes on the command line end in one line that names the flag, what was found and what is there."""

import pytest

from agent_jax.command_line import USER_ERROR, parse_flags


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
    assert "did you mean 'smoke'?" in capsys.readouterr().err


def test_a_missing_config_file_is_named(capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        parse_flags(["train", "--config", str(tmp_path / "none.py:smoke")])
    assert ended.value.code == USER_ERROR
    assert "none.py:smoke: no such file" in capsys.readouterr().err
