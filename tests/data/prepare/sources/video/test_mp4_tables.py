from __future__ import annotations

import struct
from pathlib import Path

import av
import numpy as np
import pytest
from videos import trimmed, write_video

from agent_jax.data.prepare.sources.video.decode import video_info
from agent_jax.data.prepare.sources.video.mp4_tables import check_tables


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("tables") / "whole.mp4", 8, b_frames=0)


def patched(path: Path, box: bytes, offset: int, value: int, to: Path) -> Path:
    """A copy with a number of the box's content changed."""
    content = bytearray(path.read_bytes())
    struct.pack_into(">I", content, content.index(box) + 4 + offset, value)
    to.write_bytes(content)
    return to


def test_huge_frame_count_of_a_table_is_refused_before_ffmpeg_allocates(whole, tmp_path):
    path = patched(whole, b"stsz", 4, 1, tmp_path / "a.mp4")  # all of one byte
    path = patched(path, b"stsz", 8, 2**26, path)
    for read in (check_tables, video_info):
        with pytest.raises(ValueError, match="a.mp4: the tables of its header: .* to 4,294,967,296, .*MAX_READ"):
            read(path)


def test_huge_edit_list_is_refused(whole, tmp_path):
    path = patched(whole, b"elst", 4, 2**22, tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="a.mp4: the tables of its header"):
        check_tables(path)


def test_huge_frame_count_of_a_fragment_is_refused(whole, tmp_path):
    fragment = tmp_path / "a.mp4"
    with av.open(str(whole)) as source, av.open(str(fragment), "w", options={
            "movflags": "frag_keyframe+empty_moov"}) as copy:
        target = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = target
                copy.mux(packet)
    check_tables(fragment)
    assert video_info(fragment).frames == 8
    with pytest.raises(ValueError, match="a.mp4: the tables of its header"):
        check_tables(patched(fragment, b"trun", 4, 2**24, fragment))


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".avi", ".webm"])
def test_ordinary_files_pass(whole, tmp_path, monkeypatch, suffix):
    monkeypatch.setenv("AGENT_JAX_MAX_READ_MB", "1")
    path = tmp_path / f"a{suffix}"
    check_tables(trimmed(whole, 0.2, path) if suffix == ".mov" else write_video(path, 8))


def test_uncompressed_sound_may_have_many_samples(tmp_path, monkeypatch):
    monkeypatch.setenv("AGENT_JAX_MAX_READ_MB", "1")
    path = tmp_path / "a.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
    check_tables(path)


def test_box_longer_than_the_file_ends_with_it(whole, tmp_path):
    path = tmp_path / "a.mp4"
    for length in (0, 1, 3, 2**31, 2**32 - 1):
        content = bytearray(whole.read_bytes())
        struct.pack_into(">I", content, content.index(b"moov") - 4, length)
        path.write_bytes(content)
        check_tables(path)
    path.write_bytes(whole.read_bytes().replace(b"dcom", b"cmov") + struct.pack(">I4s", 16, b"moov")
                     + struct.pack(">I4s", 8, b"cmov"))
    with pytest.raises(ValueError, match="a.mp4: its header is compressed"):
        check_tables(path)
