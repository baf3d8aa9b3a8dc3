"""The face: measures of a known mesh turned by known angles, and MediaPipe itself on a known picture.

``mesh.npy`` is MediaPipe 0.10.21's mesh of the astronaut of scikit-image. Tests that run MediaPipe need a Python that
has it: the variable ``CMSBERT_FACE_PYTHON`` names it (``.ci/run`` makes one).
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cmsbert_fast.data import DataError
from cmsbert_fast.extract.face.measures import POINTS, UNITS, head_axes, measure
from cmsbert_fast.extract.face.process import Seen, Tracker, TrackerFailed
from cmsbert_fast.extract.media.process import Unreadable
from tests.extract.media import face_picture, turned, write_media

COLUMN = {name: k for k, name in enumerate(UNITS)}
HEAD = ("head_yaw", "head_pitch", "head_roll")


@pytest.fixture(scope="module")
def mesh() -> np.ndarray:
    """A mesh that looks straight into the camera."""
    points = np.load(Path(__file__).with_name("mesh.npy")).astype(np.float64)
    axes = head_axes(points)
    assert axes is not None
    return (points - points.mean(axis=0)) @ axes.T * [1, -1, -1]


def turn(points: np.ndarray, yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> np.ndarray:
    """A mesh turned by degrees: first the roll, then the pitch, then the yaw."""
    a, b, c = np.radians([yaw, pitch, roll])
    about_z = np.array([[np.cos(c), np.sin(c), 0], [-np.sin(c), np.cos(c), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), np.sin(b)], [0, -np.sin(b), np.cos(b)]])
    about_y = np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])
    return points @ (about_y @ about_x @ about_z).T


def of(points: np.ndarray) -> np.ndarray:
    values = measure(points)
    assert values is not None
    return values


@pytest.mark.parametrize("angles", [(25, 0, 0), (0, -15, 0), (0, 0, 40), (-20, 10, 30), (30, -20, -170)])
def test_angles_of_the_head(mesh: np.ndarray, angles: tuple[float, float, float]) -> None:
    found = of(turn(mesh, *angles))
    assert [found[COLUMN[name]] for name in HEAD] == pytest.approx(angles, abs=0.01)


def test_nothing_else_changes_with_pose_size_and_place(mesh: np.ndarray) -> None:
    moved = turn(mesh, 20, -10, 15) * 3.7 + np.array([300.0, 120.0, 5.0])
    rest = slice(len(HEAD), None)
    assert of(moved)[rest] == pytest.approx(of(mesh)[rest], abs=1e-9)


# What moves: points, the direction in the picture's axes (y is down), and the measures that answer, with their sign.
MOVES = {
    "right brow up": ((55, 107, 52, 105, 46, 70), (0, -1, 0), dict.fromkeys(("inner", "middle", "outer"), 1)),
    "mouth open": ((14, 87, 317, 17, 84, 314, 152), (0, 1, 0), {"lip_gap": 1, "jaw_drop": 1}),
    "jaw to the left": ((152,), (1, 0, 0), {"jaw_side": 1}),
    "right corner up": ((61,), (0, -1, 0), {"mouth_corner_right": 1}),
    "eyes to the left": (tuple(range(468, 478)), (1, 0, 0), {"gaze_right_x": 1, "gaze_left_x": 1}),
    "eyes up": (tuple(range(468, 478)), (0, -1, 0), {"gaze_right_y": 1, "gaze_left_y": 1}),
    "left eye shut": ((386, 385, 387), (0, 1, 0), {"eye_open_left": -1}),
    "lips forward": ((13, 14), (0, 0, -1), {"lip_forward": 1}),
}


@pytest.mark.parametrize("name", MOVES)
def test_a_movement_shows_where_it_belongs(mesh: np.ndarray, name: str) -> None:
    points, direction, expected = MOVES[name]
    if name == "right brow up":
        expected = {f"brow_{part}_right": sign for part, sign in expected.items()}
    moved = mesh.copy()
    moved[list(points)] += 3 * np.array(direction)
    change = of(moved) - of(mesh)
    for column, sign in expected.items():
        assert change[COLUMN[column]] * sign > 0.01, column
    for column in (*HEAD, "brow_middle_left", "mouth_corner_left", "eye_open_right"):
        assert change[COLUMN[column]] == pytest.approx(0, abs=1e-9), column


def test_right_and_left_are_not_mixed_up(mesh: np.ndarray) -> None:
    """The person's right is at the left of a picture that is not mirrored."""
    assert mesh[33, 0] < mesh[263, 0]
    assert mesh[468:473, 0].mean() < mesh[473:478, 0].mean()


def test_a_mesh_without_extent_has_no_measures() -> None:
    assert measure(np.zeros((POINTS, 3))) is None
    assert measure(np.full((POINTS, 3), np.nan)) is None


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"cmsbert-fast\[extract-face\]"):
        Tracker(_python(tmp_path, "raise ModuleNotFoundError('no mediapipe')"), None)
    with pytest.raises(DataError, match="--face-python"):
        Tracker(tmp_path / "absent", None)
    monkeypatch.setattr("cmsbert_fast.extract.face.process._EXIT", 0.2)
    code = (
        f"import os, time; print(os.getpid(), file=open({str(tmp_path / 'id')!r}, 'w'), flush=True); "
        "os.write(1, b'X' + bytes(4)); time.sleep(60)"
    )
    with pytest.raises(DataError, match="There is no face mesh"):
        Tracker(_python(tmp_path, code), None)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "id").read_text()), 0)


def test_a_tracker_that_ends_is_started_again(tmp_path: Path) -> None:
    """It answers one picture, then ends."""
    code = (
        "import struct, sys\n"
        "def send(kind, payload): sys.stdout.buffer.write(struct.pack('<cI', kind, len(payload)) + payload)\n"
        'send(b\'V\', b\'{"version": "0", "detector": true}\')\n'
        "sys.stdout.flush()\n"
        "def read(): return sys.stdin.buffer.read(struct.unpack('<cI', sys.stdin.buffer.read(5))[1])\n"
        "first, second = read(), read()  # one is on its way while the other is answered\n"
        "send(b'M', first[:8] + struct.pack('<Hf', 1, 0.5))\n"
        "sys.stdout.flush()\n"
        "print('out of luck', file=sys.stderr)\n"
    )
    video = write_media(tmp_path / "a.mp4", [face_picture(64)] * 200)
    with Tracker(_python(tmp_path, code), None) as tracker:
        for _ in range(2):
            found = tracker.track(video)
            first = next(found)
            assert isinstance(first, Seen)
            assert (first.time, first.faces, first.confidence, first.points) == (0.0, 1, 0.5, None)
            with pytest.raises(TrackerFailed, match="out of luck"):
                list(found)


def _python(folder: Path, code: str) -> Path:
    """What is run instead of a Python: it runs this code, whatever it is asked for."""
    (folder / "code.py").write_text(code)
    script = folder / "python"
    script.write_text(f"#!/bin/sh\nexec {sys.executable} {folder / 'code.py'}\n")
    script.chmod(0o755)
    return script


@pytest.fixture(scope="module")
def tracker() -> Iterator[Tracker]:
    python = os.environ.get("CMSBERT_FACE_PYTHON")
    if not python:
        pytest.skip("CMSBERT_FACE_PYTHON names no Python with MediaPipe")
    with Tracker(Path(python), None) as started:
        yield started


def follow(tracker: Tracker, path: Path) -> tuple[list[Seen], dict]:
    *seen, end = tracker.track(path)
    assert isinstance(end, dict)
    assert all(isinstance(one, Seen) for one in seen)
    return seen, end  # type: ignore[return-value]


def on_wall(*faces: tuple[np.ndarray, int, int], height: int = 256, width: int = 512) -> np.ndarray:
    """Faces at places (left, top) on a grey wall."""
    wall = np.full((height, width, 3), 128, dtype=np.uint8)
    for face, left, top in faces:
        wall[top : top + face.shape[0], left : left + face.shape[1]] = face
    return wall


def test_the_roll_of_a_turned_face(tracker: Tracker, tmp_path: Path) -> None:
    face, angles = face_picture(256), (0, -25, -12, -5, 8, 15, 30)
    pictures = [turned(face, angle) for angle in angles for _ in range(8)]
    seen, end = follow(tracker, write_media(tmp_path / "a.mp4", pictures))
    assert len(seen) == end["seen"] == len(pictures)
    rolls = np.array([np.nan if one.points is None else of(one.points)[COLUMN["head_roll"]] for one in seen])
    found = np.median(rolls.reshape(len(angles), 8)[:, 3:], axis=1)  # once the tracker has come to rest
    # Counter-clockwise in the picture is towards the person's right shoulder.
    assert np.abs(found - found[0] - np.array(angles)).max() < 1.0
    assert min(one.confidence for one in seen) > 0.5
    assert {one.faces for one in seen} == {1}


def test_no_face_is_seen_where_there_is_none(tracker: Tracker, tmp_path: Path) -> None:
    pictures = [on_wall()] * 5 + [on_wall((face_picture(200), 150, 30))] * 10 + [on_wall()] * 10
    seen, _ = follow(tracker, write_media(tmp_path / "a.mp4", pictures))
    there = [one.points is not None for one in seen]
    assert not any(there[:5])
    assert all(there[7:15])
    assert not any(there[17:])
    assert max(one.confidence for one in seen[:4]) == 0


def test_of_two_people_the_larger_is_followed_and_both_are_counted(tracker: Tracker, tmp_path: Path) -> None:
    large, small = face_picture(220), face_picture(140)[:, ::-1]
    both = on_wall((small, 10, 60), (large, 280, 20))
    only_small = on_wall((small, 10, 60))
    seen, _ = follow(tracker, write_media(tmp_path / "a.mp4", [both] * 25 + [only_small] * 75))
    middles = [None if one.points is None else float(one.points[:, 0].mean()) for one in seen]
    assert all(middle is not None and middle > 280 for middle in middles[3:25])
    assert np.median([one.faces for one in seen[3:25]]) == 2
    gone = middles[30:70]  # for a while, nobody takes her place
    assert all(middle is None for middle in gone)
    assert all(middle is not None and middle < 160 for middle in middles[85:])  # then the other does


def test_nothing_of_a_video_reaches_the_next(tracker: Tracker, tmp_path: Path) -> None:
    one = write_media(tmp_path / "a.mp4", [on_wall((face_picture(200), 10, 20))] * 6)
    other = write_media(tmp_path / "b.mp4", [on_wall((face_picture(150), 350, 60))] * 6)
    (tmp_path / "c.mp4").write_bytes(b"no video")
    alone, _ = follow(tracker, other)
    follow(tracker, one)
    with pytest.raises(Unreadable):
        follow(tracker, tmp_path / "c.mp4")
    again, _ = follow(tracker, other)
    for a, b in zip(alone, again, strict=True):
        assert (a.time, a.faces, a.confidence) == (b.time, b.faces, b.confidence)
        assert (a.points is None) == (b.points is None)
        assert a.points is None or np.array_equal(a.points, b.points)
