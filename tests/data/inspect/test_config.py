"""The cameras that `check` and `show` read, and the forms of a list on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lerobot_sets import TOP, WRIST, version_2

from agent_jax.data.__main__ import main
from agent_jax.data.inspect.config import complete, read_check_config
from agent_jax.data.prepare.config import PrepareConfig, read_prepare_config
from agent_jax.data.prepare.sources.choices import typed_options
from agent_jax.data.prepare.sources.video.text_pairs import VideoTextOptions
from agent_jax.data.store.store import open_store

FORMS = ["{0},{1}", "('{0}', '{1}')", '["{0}", "{1}"]']


@pytest.fixture(scope="module")
def two_cameras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the cameras front and hand."""
    path = tmp_path_factory.mktemp("data")
    version_2(path / "set")
    assert main(["prepare", "--source", "lerobot", "--path", str(path / "set"), "--out", str(path / "store"),
                 "--processes", "1", f"--config.cameras.front={TOP}", f"--config.cameras.hand={WRIST}",
                 "--config.image_size=8"]) == 0
    return path / "store"


def test_the_cameras_of_agent_jax_json_are_the_default(two_cameras: Path, tmp_path: Path,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads((two_cameras / "agent_jax.json").read_text())["cameras"] == [
        "steps/observation/front", "steps/observation/hand"]
    assert main(["check", str(two_cameras)]) == 0
    output = capsys.readouterr().out
    for camera in ("front", "hand"):
        assert f"steps/observation/{camera}: 20 images of 8 x 8" in output
    assert main(["show", str(two_cameras), "--out", str(tmp_path / "sheet.png"), "--frames", "2"]) == 0


def test_without_a_list_all_cameras_are_read(two_cameras: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in two_cameras.iterdir():
        (bare / file.name).write_bytes(file.read_bytes())
    content = json.loads((bare / "agent_jax.json").read_text())
    del content["cameras"]
    (bare / "agent_jax.json").write_text(json.dumps(content))
    found = complete(read_check_config(bare, "", []), open_store(bare)).cameras
    assert sorted(found) == ["steps/observation/front", "steps/observation/hand"]


@pytest.mark.parametrize("form", FORMS)
def test_a_list_means_the_same_in_every_form(two_cameras: Path, form: str) -> None:
    given = "--config.cameras=" + form.format("steps/observation/hand", "steps/observation/front")
    config = complete(read_check_config(two_cameras, "", [given]), open_store(two_cameras))
    assert config.cameras == ("steps/observation/hand", "steps/observation/front")
    classes = read_prepare_config("", ["--config.options.classes=" + form.format("calm", "tense")])
    assert typed_options(VideoTextOptions, classes).classes == ("calm", "tense")
    cameras = read_prepare_config("", ["--config.cameras=" + form.format(TOP, WRIST)]).cameras
    assert cameras == {"top": TOP, "wrist": WRIST}


def test_one_camera_is_a_list_of_one(two_cameras: Path) -> None:
    config = complete(read_check_config(two_cameras, "", ["--config.cameras=steps/observation/hand"]),
                      open_store(two_cameras))
    assert config.cameras == ("steps/observation/hand",)
    assert typed_options(VideoTextOptions, PrepareConfig(options={"classes": "calm"})).classes == ("calm",)


def test_wrong_lists_are_refused() -> None:
    with pytest.raises(ValueError, match="cameras=a/top,b/top"):
        read_prepare_config("", ["--config.cameras=a/top,b/top"])
    with pytest.raises(ValueError, match=r"\['a: found no list, expected a,b"):
        read_prepare_config("", ["--config.cameras=['a"])
