from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
from cines import grey_cine, ultrasound, write_cine
from pydicom.uid import DeflatedExplicitVRLittleEndian
from videos import cut, frame_number, sizeless, write_video

from agent_jax.data.__main__ import main
from agent_jax.data.bad_data import BadDataError
from agent_jax.data.prepare.config import PrepareConfig
from agent_jax.data.prepare.sources import open_source
from agent_jax.data.store.store import open_store


def read(path, **config):
    source = open_source("video_text", path, PrepareConfig(**{"window": 4, **config}))
    return [(episode, list(episode.steps)) for recording in source.recordings() for episode in source.read(recording)]


def numbers(steps):
    return [frame_number(np.asarray(step.images["rgb"])) for step in steps]


def test_every_text_of_a_video_is_an_episode_of_whole_clips(tmp_path):
    write_video(tmp_path / "a.mp4", 11)
    write_video(tmp_path / "b.avi", 8)
    (tmp_path / "texts.csv").write_text("file,caption,question,answer,start,stop\na.mp4,a dog runs,,,,\n"
                                        "b.avi,,who?,a cat,0.2,0.4\na.mp4,,where?,home,0.1,\n")
    found = read(tmp_path)
    assert [(episode.name, episode.instruction, episode.answer, episode.label) for episode, _ in found] == [
        ("a.mp4/0", "A video of", "a dog runs", -1), ("a.mp4/1", "where?", "home", -1),
        ("b.avi/0", "who?", "a cat", -1)]
    assert [numbers(steps) for _, steps in found] == [list(range(8)), list(range(2, 10)), [4, 5, 6, 7]]
    assert all(not step.actions for _, steps in found for step in steps)


def test_images_are_taken_at_the_rate_or_spread_over_the_video(tmp_path):
    write_video(tmp_path / "a.mp4", 24)
    (tmp_path / "texts.jsonl").write_text('{"file": "a.mp4", "label": 2}\n')
    [(episode, steps)] = read(tmp_path, rate_hz=10.0)
    assert (episode.instruction, episode.answer, episode.label) == ("A video of", "", 2)
    assert numbers(steps) == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22]
    assert numbers(read(tmp_path, options={"spread": True})[0][1]) == [0, 6, 12, 18]
    assert numbers(read(tmp_path, rate_hz=10.0, window=5)[0][1]) == list(range(0, 20, 2))


def test_dicom_cine_is_read_without_storing_patient_data(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "store"
    raw.mkdir()
    for number in range(2):
        grey_cine(raw / f"{number}.dcm", frames=8)
    (raw / "texts.csv").write_text("file,caption,person\n0.dcm,a heart,Jane Doe\n1.dcm,a lung,John Roe\n")
    assert main(["prepare", "--source", "video_text", "--path", str(raw / "texts.csv"), "--out", str(out),
                 "--config.options.group=person", "--config.encoding=png"]) == 0
    store = open_store(out)
    episodes = [store.split(split)[0] for split in ("train", "test")]
    assert {bytes(episode.value("answer")) for episode in episodes} == {b"a heart", b"a lung"}
    assert [episode.steps for episode in episodes] == [8, 8]
    stored = b"".join(file.read_bytes() for file in out.iterdir())
    assert b"heart" in stored
    for secret in (b"Doe", b"Jane", b"SECRET", b"Roe"):
        assert secret not in stored


def test_real_ultrasound_is_prepared(tmp_path):
    shutil.copy(ultrasound(), tmp_path / "a.dcm")
    (tmp_path / "texts.csv").write_text("file,label\na.dcm,calm\n")
    [(episode, steps)] = read(tmp_path, window=9, rate_hz=10.0, options={"classes": ["calm", "restless"]})
    assert (episode.label, len(steps)) == (0, 9)
    assert np.asarray(steps[0].images["rgb"]).shape == (240, 320, 3)


@pytest.mark.parametrize(("rows", "message"), [
    ("b.mp4,x,,\n", "texts.csv:2: .*b.mp4: not found"),
    ("a.mp4,x,,\na.mp4,x,,\n", "texts.csv:3: repeats .*texts.csv:2"),
    ("a.mp4,x,1,9\n", "texts.csv:2: .*a.mp4: lasts 1.200 s, .*start=1 and stop=9"),
    ("a.mp4,x,2,\n", "texts.csv:2: .*a.mp4: lasts 1.200 s, .*start=2"),
    ("a.mp4,x,0,0.1\n", "texts.csv:2: .*a.mp4: holds less than one clip of config.window=4 images"),
    ("cut.mp4,x,,\n", r"texts.csv:2: .*cut.mp4, frame \d+ after .* cut off"),
    ("deep.dcm,x,,\n", "texts.csv:2: .*deep.dcm: found pixels of 1 x 32 bits"),
    ("slow.mp4,x,,\n", "texts.csv:3: .*slow.mp4: found 10 frames a second, expected 20"),
    ("a.mp4,,,\n", "texts.csv:2: found no text"),
])
def test_errors_are_reported_with_the_line_of_the_table(tmp_path, rows, message):
    whole = write_video(tmp_path / "a.mp4", 24, options={"movflags": "faststart"})
    cut(whole, 0.95, tmp_path / "cut.mp4")
    write_cine(tmp_path / "deep.dcm", np.zeros((2, 4, 4), np.uint32))
    write_video(tmp_path / "slow.mp4", 24, 10)
    first = "a.mp4,first,,\n" if "slow" in rows else ""
    (tmp_path / "texts.csv").write_text("file,caption,start,stop\n" + first + rows)
    with pytest.raises(BadDataError, match=message):
        read(tmp_path)


def test_unreadable_videos_are_skipped_with_the_reason(tmp_path, capsys):
    write_video(tmp_path / "a.mp4", 8)
    sizeless(tmp_path / "b.avi", known_codec=False)
    deflated = grey_cine(tmp_path / "c.dcm", syntax=DeflatedExplicitVRLittleEndian)
    content = bytearray(deflated.read_bytes())
    content[-40] ^= 4
    deflated.write_bytes(content)
    (tmp_path / "texts.csv").write_text("file,caption\na.mp4,a\nb.avi,b\nc.dcm,c\n")
    out = tmp_path / "store"
    assert main(["prepare", "--source", "video_text", "--path", str(tmp_path / "texts.csv"), "--out", str(out),
                 "--on_error=skip", "--config.window=4", "--config.image_size=8", "--config.validation=0"]) == 0
    output = capsys.readouterr().out
    assert "1 recordings" in output
    assert "left out: 2 recordings" in output
    assert re.search(r"texts.csv:3: .*b.avi: .*no codec", output)
    assert re.search(r"texts.csv:4: .*c.dcm.*: cannot be (read|decoded) as", output)


def test_invalid_config_is_reported(tmp_path):
    write_video(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="found no table, expected one table"):
        read(tmp_path)
    (tmp_path / "a.csv").write_text("file,caption\na.mp4,x\n")
    for config, message in (({"options": {"captions": "c"}}, "config.options.captions: .*'caption'"),
                          ({"fields": {"answer": "c"}}, "config.fields.answer: .* config.options.file"),
                          ({"action_spec": {"name": "x"}}, "videos with text have no actions")):
        with pytest.raises(ValueError, match=message):
            read(tmp_path, **config)
    (tmp_path / "b.csv").write_text("")
    with pytest.raises(ValueError, match=r"found a.csv, b.csv, expected one table"):
        read(tmp_path)
