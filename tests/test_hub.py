"""Names of the hub: found in the cache, or refused in one message with the places searched."""

import pathlib
import subprocess
import sys

import pytest
from random_huggingface import save_language, save_vision

from agent_jax.config import PretrainedConfig
from agent_jax.convert.from_huggingface import config_of
from agent_jax.convert.huggingface.architecture import language_config, vision_config
from agent_jax.hub import located

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> pathlib.Path:
    """An empty cache of the hub's library."""
    place = tmp_path / "home" / "hub"
    place.mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place))
    return place


def snapshot(cache: pathlib.Path, name: str) -> pathlib.Path:
    """The library's folder for the files of a model's `main`."""
    model = cache / f"models--{name.replace('/', '--')}"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    return model / "snapshots" / COMMIT


def test_a_model_in_the_cache_is_found_by_its_name(cache):
    save_vision(snapshot(cache, "openai/clip-tiny"))
    assert located("openai/clip-tiny") == cache / "models--openai--clip-tiny" / "snapshots" / COMMIT
    assert vision_config("openai/clip-tiny").width == 32


def test_a_model_with_only_pytorch_files_is_found_with_its_tokenizer(cache):
    folder = snapshot(cache, "facebook/opt-tiny")
    save_language(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert language_config("facebook/opt-tiny").width == 32
    save_vision(snapshot(cache, "openai/clip-tiny"))
    config = config_of("openai/clip-tiny", "facebook/opt-tiny")
    assert config.init.pretrained == PretrainedConfig("openai/clip-tiny", "facebook/opt-tiny")
    assert config.vocabulary.tokenizer == str(folder)


def test_an_unknown_name_is_refused_with_the_cache_and_the_command_to_run(cache):
    with pytest.raises(FileNotFoundError, match="openai/clip-none: not a local path") as error:
        located("openai/clip-none")
    for text in (str(cache), "not available from the hub", "HF_HUB_OFFLINE", "hf download openai/clip-none", "HF_HOME"):
        assert text in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_an_incomplete_model_in_the_cache_is_refused(cache, missing):
    folder = snapshot(cache, "openai/clip-half")
    save_vision(folder)
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match="cache"):
        located("openai/clip-half")


@pytest.mark.parametrize("path", ["/no/such/folder", "./no/such", "no-slash", "a/b/c", "../x", "~/no-such-folder-here"])
def test_a_path_that_is_not_a_hub_name_is_only_searched_locally(cache, path):
    with pytest.raises(FileNotFoundError, match="no such folder or file"):
        located(path)


def test_a_local_folder_of_that_name_comes_first(cache, tmp_path, monkeypatch):
    save_vision(snapshot(cache, "openai/clip-tiny"))
    monkeypatch.chdir(tmp_path)
    save_vision(tmp_path / "openai" / "clip-tiny")
    assert located("openai/clip-tiny") == pathlib.Path("openai/clip-tiny")


def test_the_cache_is_in_hf_home(tmp_path):
    save_vision(snapshot(tmp_path / "hub", "openai/clip-tiny"))
    program = "from agent_jax.hub import located; print(located('openai/clip-tiny'))"
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "hub" / "models--openai--clip-tiny" / "snapshots" / COMMIT)
