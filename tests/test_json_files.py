"""JSON files: written atomically, and a path that cannot be written is refused before the work."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import pytest

from agent_jax.convert.__main__ import main as convert
from agent_jax.data.__main__ import main as data
from agent_jax.evaluate.__main__ import main as evaluate
from agent_jax.json_files import check_json_path, json_path, read_json_object, write_json


def test_a_file_is_written_in_a_new_directory_and_replaced(tmp_path: Path):
    path = tmp_path / "deep" / "found.json"
    for value in (1, 2):
        write_json(path, {"a": value})
    assert json.loads(path.read_text()) == {"a": 2}
    assert [found.name for found in path.parent.iterdir()] == ["found.json"]


@pytest.mark.parametrize(("content", "reason"), [
    (b"{", "Expecting property name"), (b'{"a": "\xff"}', "utf-8"), (b"[" * 100_000, "nested too deeply"),
    (b"[1]", "found a list, expected a JSON object"),
])
def test_a_file_without_a_json_object_is_refused_with_the_reason(tmp_path: Path, content: bytes, reason: str):
    (tmp_path / "info.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"info.json: .*{reason}"):
        read_json_object(tmp_path / "info.json")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "found.json"
    write_json(path, 1)
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    full = OSError("No space left on device")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(full))
    with pytest.raises(OSError, match="No space"):
        write_json(path, 2)
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("found.json", "1\n")]


def test_links_and_pipes_are_written_in_place(tmp_path: Path):
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.touch()
    link.symlink_to(target)
    write_json(link, 1)
    assert (target.read_text(), link.is_symlink()) == ("1\n", True)
    read, write = os.pipe()
    write_json(check_json_path(f"/dev/fd/{write}"), 2)
    assert os.read(read, 10) == b"2\n"
    os.close(read)
    os.close(write)


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "deep" / "a.json"
    for wrong, why in ((tmp_path, "is a directory"), (below, "file is not a directory")):
        with pytest.raises(ValueError, match=f"{wrong}: .*{why}"):
            check_json_path(str(wrong))
    monkeypatch.setattr(os, "access", lambda *_: False)  # as for a user who is not root
    with pytest.raises(ValueError, match="cannot be written to"):
        check_json_path(str(tmp_path / "deep" / "a.json"))
    with pytest.raises(argparse.ArgumentTypeError, match="is a directory"):
        json_path(str(tmp_path))
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("command", "arguments"), [
    (convert, ["to-pytorch", "run", "out"]), (convert, ["from-hf", "--vision", "a", "--language", "b", "out"]),
    (convert, ["verify-hf", "weights"]), (data, ["stats", "store"]), (evaluate, ["offline", "--checkpoint", "run"])])
def test_commands_refuse_such_a_path_before_their_work(command, arguments, tmp_path: Path,
                                                         capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        command([*arguments, "--json", str(tmp_path)])
    assert ended.value.code == 2
    assert f"argument --json: {tmp_path}: is a directory" in capsys.readouterr().err
