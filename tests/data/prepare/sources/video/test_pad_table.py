from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from gamepads import pad_row, write_table

from agent_jax.actions import BLEEDING_EDGE, MINECRAFT
from agent_jax.actions.vocabulary import BLEEDING_EDGE_BUTTONS
from agent_jax.data.bad_data import BadDataError
from agent_jax.data.prepare.sources.video.decode import VideoInfo
from agent_jax.data.prepare.sources.video.pad_table import Action, GamepadOptions, PadTable
from agent_jax.data.prepare.sources.video.videos import Footage

SHOWN = Footage(Path("a.mp4"), VideoInfo(4, 20.0, 48, 64))  # frames at 0, 0.05, 0.1, 0.15 s


def read(path: Path, options: GamepadOptions | None = None) -> list[Action]:
    return PadTable(BLEEDING_EDGE, options or GamepadOptions()).read(path, SHOWN)


def down(actions: list[Action]) -> list[set[str]]:
    return [{BLEEDING_EDGE_BUTTONS[i] for i in np.flatnonzero(action["buttons"])} for action in actions]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("first", [0, 1])
def test_frame_column_gives_one_row_per_frame(tmp_path, suffix, first):
    rows = [pad_row(["Evade", "Taunt"] if t == 2 else [], (0.25, -1.0, 0, t / 4), frame=first + t) for t in range(4)]
    actions = read(write_table(tmp_path / f"a{suffix}", rows))
    assert down(actions) == [set(), set(), {"Evade", "Taunt"}, set()]
    np.testing.assert_allclose([action["left_stick"] for action in actions], [[0.25, -1.0]] * 4)
    np.testing.assert_allclose([action["right_stick"] for action in actions], [[0, t / 4] for t in range(4)])


def test_time_column_gives_the_last_row_and_all_presses_before_the_next_frame(tmp_path):
    rows = [pad_row(time=-0.01), pad_row(["Jump"], (1, 0, 0, 0), time=0.02), pad_row(time=0.03),
            pad_row(["Mount"], time=0.1)]
    actions = read(write_table(tmp_path / "a.csv", rows))
    assert down(actions) == [{"Jump"}, set(), {"Mount"}, {"Mount"}]
    assert [action["left_stick"].tolist() for action in actions] == [[0, 0]] * 4  # the stick was back at frame 1


def test_options_set_columns_units_and_ranges(tmp_path):
    names = {"left_stick": ("lx", "ly")}
    options = GamepadOptions(buttons={"Jump": "A"}, sticks=names, time="ms", time_unit_s=0.001, pressed=0.2,
                             stick_range=32767, invert_y=True)
    rows = [{**pad_row(["Jump"], ms=50 * t), "A": 0.1 * t, "lx": -32768, "ly": 16384} for t in range(4)]
    actions = read(write_table(tmp_path / "a.csv", rows), options)
    assert down(actions) == [set(), set(), {"Jump"}, {"Jump"}]
    np.testing.assert_allclose(actions[0]["left_stick"], [-1, -0.5], atol=1e-4)


@pytest.mark.parametrize(("rows", "message"), [
    ([pad_row(frame=t) for t in range(3)], "a.csv:4: the last of 3 rows, expected 4"),
    ([pad_row(frame=t) for t in (0, 1, 3, 4)], "a.csv:4: found frame 3, expected 2"),
    ([pad_row(frame=t) for t in range(5, 9)], "a.csv:2: found frame 5, expected 0 or 1"),
    ([pad_row(sticks=(0, 1.5, 0, 0), frame=t) for t in range(4)], "a.csv:2: found left_stick_y=1.5, expected -1 to 1"),
    ([{**pad_row(frame=t), "Jump": 3} for t in range(4)], "a.csv:2: found Jump=3, expected a button between 0 and 1"),
    ([{**pad_row(frame=t), "Jump": "nan"} for t in range(4)], "a.csv:2: .* in column 'Jump'"),
    ([{"frame": t, "Jump": 1} for t in range(4)], "a.csv:2: .* in column 'Evade'"),
    ([pad_row()], "a.csv:2: found the columns .* expected 'frame' .* or 'time'"),
    ([pad_row(time=t) for t in (0, 0.1, 0.05)], "a.csv:4: found 0.05 s after 0.1 s"),
    ([pad_row(time=0.04)], "a.csv:2: found 0.04 s as the last row before frame 0"),
    ([pad_row(time=-0.9)], r"a.csv:2: found -0.9 s as the last row before frame 3 at 0.150 s .*max_gap_s"),
])
def test_wrong_row_is_reported(tmp_path, rows, message):
    with pytest.raises(BadDataError, match=message):
        read(write_table(tmp_path / "a.csv", rows))


def test_rows_after_the_end_of_the_video_are_reported(tmp_path, caplog):
    path = write_table(tmp_path / "a.csv", [pad_row(time=0.05 * t) for t in range(8)])
    read(path)
    assert f"{path}:7: this row and those after it (3 of 8) lie after the 0.200 s of a.mp4" in caplog.text
    caplog.clear()
    read(write_table(path, [pad_row(time=0.05 * t) for t in range(5)]))  # one row at the very end
    assert not caplog.text


def test_log_of_changes_may_have_old_rows(tmp_path):
    path = write_table(tmp_path / "a.csv", [pad_row(["Jump"], time=-100)])
    assert down(read(path, GamepadOptions(max_gap_s=0.0))) == [{"Jump"}] * 4


def test_table_without_rows_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("frame\n")
    with pytest.raises(BadDataError, match="a.csv: has no rows"):
        read(tmp_path / "a.csv")


def test_merged_actions_have_all_presses_and_the_first_sticks():
    made = [{"buttons": np.arange(11) == t, "left_stick": np.array([t, 0]), "right_stick": np.zeros(2)} for t in (1, 2)]
    merged = PadTable(BLEEDING_EDGE, GamepadOptions()).merged(made)
    assert np.flatnonzero(merged["buttons"]).tolist() == [1, 2]
    assert merged["left_stick"].tolist() == [1, 0]


def test_options_that_do_not_fit_the_spec_are_refused():
    for spec, options, message in ((BLEEDING_EDGE, {"buttons": {"Dodge": "A"}}, "options.buttons: found 'Dodge'"),
                                 (BLEEDING_EDGE, {"sticks": {"stick": ("x", "y")}}, "options.sticks: found 'stick'"),
                                 (MINECRAFT, {}, r"found the part camera \(Camera\), expected buttons and sticks")):
        with pytest.raises(ValueError, match=message):
            PadTable(spec, GamepadOptions(**options))
    with pytest.raises(ValueError, match="sticks.left_stick: found .* expected the columns of x and y"):
        GamepadOptions(sticks={"left_stick": ("x",)})
    with pytest.raises(ValueError, match="stick_range=0 must be positive"):
        GamepadOptions(stick_range=0)
    assert math.isclose(GamepadOptions().pressed, 0.5)
