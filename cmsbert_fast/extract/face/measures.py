"""From a face mesh to measures: head pose, and distances in the head's own axes over the distance of the eyes.

They are geometry, no intensities of action units. Numbers of points are those of MediaPipe's mesh; right and left are
the person's.
"""

import numpy as np

VERSION = 1  # of these numbers: counts up with every change of them
POINTS = 478

_LENGTH = "distances of the eyes"
# Columns and their units. Heights are upwards from the line through the corners of the eyes; a side is the person's.
UNITS = {
    "head_yaw": "degrees, positive to the person's left",
    "head_pitch": "degrees, positive upwards",
    "head_roll": "degrees, positive towards the person's right shoulder",
    **{f"gaze_{side}_x": f"{_LENGTH}, positive to the person's left" for side in ("right", "left")},
    **{f"gaze_{side}_y": f"{_LENGTH}, positive upwards" for side in ("right", "left")},
    **{f"eye_open_{side}": _LENGTH for side in ("right", "left")},
    **{f"brow_{part}_{side}": _LENGTH for part in ("inner", "middle", "outer") for side in ("right", "left")},
    "brow_gap": _LENGTH,
    **{f"mouth_corner_{side}": f"{_LENGTH}, upwards from the nose's base" for side in ("right", "left")},
    "mouth_width": _LENGTH,
    "lip_gap": _LENGTH,
    "lip_upper": _LENGTH,
    "lip_lower": _LENGTH,
    "lip_forward": f"{_LENGTH}, in front of the nose's base",
    "jaw_drop": f"{_LENGTH}, from the nose's base to the chin",
    "jaw_side": f"{_LENGTH}, positive to the person's left",
}

# Pairs of points that lie symmetrically and move with the bone: right, left.
_PAIRS = np.array([(33, 263), (133, 362), (127, 356), (234, 454), (162, 389), (93, 323)])
_UP, _DOWN = np.array([10, 151, 109, 338]), np.array([2, 98, 327])  # forehead; base of the nose
_EYES = {"right": (33, 133), "left": (362, 263)}  # corners, from the right of the face to its left
_IRIS = {"right": slice(468, 473), "left": slice(473, 478)}
_LIDS = {"right": ((159, 145), (158, 153), (160, 144)), "left": ((386, 374), (385, 380), (387, 373))}
_BROWS = {
    "right": {"inner": (55, 107), "middle": (52, 105), "outer": (46, 70)},
    "left": {"inner": (285, 336), "middle": (282, 334), "outer": (276, 300)},
}
_NOSE, _CHIN = 2, 152
_CORNERS = {"right": 61, "left": 291}
_LIPS = {"upper": ((0, 13), (37, 82), (267, 312)), "lower": ((14, 17), (87, 84), (317, 314))}  # outer to inner edges
_INNER = (13, 14)


def measure(mesh: np.ndarray) -> np.ndarray | None:
    """The measures of a face, float64 in the order of `UNITS`; None where the mesh has no extent.

    Args:
        mesh: Points in pixels of an upright picture with square pixels (478, 3): x to the right, y down, z away.
    """
    points = np.asarray(mesh, dtype=np.float64)
    axes = head_axes(points)
    corners = {side: points[list(numbers)].mean(axis=0) for side, numbers in _EYES.items()}
    size = float(np.linalg.norm(corners["left"] - corners["right"]))
    if axes is None or not np.isfinite(points).all() or size < 1e-6:
        return None
    # In the head's axes: x to the person's left, y up, z to the front; the middle of the eyes is 0.
    own = (points - (corners["left"] + corners["right"]) / 2) @ axes.T / size
    values = [*np.degrees(angles(axes))]
    gaze = {side: own[_IRIS[side]].mean(axis=0) - own[list(_EYES[side])].mean(axis=0) for side in _EYES}
    values += [gaze[side][0] for side in gaze] + [gaze[side][1] for side in gaze]
    values += [np.mean([own[top, 1] - own[bottom, 1] for top, bottom in _LIDS[side]]) for side in _EYES]
    for part in ("inner", "middle", "outer"):
        values += [own[list(_BROWS[side][part]), 1].mean() for side in _EYES]
    values.append(np.linalg.norm(own[_BROWS["left"]["inner"][0]] - own[_BROWS["right"]["inner"][0]]))
    values += [own[_CORNERS[side], 1] - own[_NOSE, 1] for side in _EYES]
    values.append(np.linalg.norm(own[_CORNERS["left"]] - own[_CORNERS["right"]]))
    values.append(own[_INNER[0], 1] - own[_INNER[1], 1])
    values += [np.mean([np.linalg.norm(own[a] - own[b]) for a, b in _LIPS[lip]]) for lip in ("upper", "lower")]
    values.append(own[list(_INNER), 2].mean() - own[_NOSE, 2])
    values += [own[_NOSE, 1] - own[_CHIN, 1], own[_CHIN, 0] - own[_NOSE, 0]]
    return np.array(values)


def head_axes(points: np.ndarray) -> np.ndarray | None:
    """The axes of the head as rows, in the picture's axes: to the person's left, up, to the front.

    The first follows pairs of points that lie symmetrically, the second the way from the base of the nose to the
    forehead, made square to it. Neither moves with jaw, brows, lids or lips.
    """
    across = (points[_PAIRS[:, 1]] - points[_PAIRS[:, 0]]).sum(axis=0)
    up = points[_UP].mean(axis=0) - points[_DOWN].mean(axis=0)
    length = float(np.linalg.norm(across))
    if not length > 1e-6:
        return None
    across = across / length
    up = up - (up @ across) * across
    length = float(np.linalg.norm(up))
    if not length > 1e-6:
        return None
    up = up / length
    return np.stack([across, up, np.cross(across, up)])


def angles(axes: np.ndarray) -> tuple[float, float, float]:
    """Yaw, pitch and roll in radians, all 0 for a face that looks straight into the camera.

    Pitch is that of the plane through forehead and base of the nose, which leans by some degrees in each face.
    """
    across, _, front = axes
    yaw = np.arctan2(front[0], -front[2])
    pitch = np.arcsin(np.clip(-front[1], -1, 1))
    level = np.array([np.cos(yaw), 0.0, np.sin(yaw)])  # where the first axis would be without a roll
    over = -np.array([0.0, 1.0, 0.0]) + front[1] * front  # the same of the second
    roll = np.arctan2(across @ over / max(float(np.linalg.norm(over)), 1e-9), across @ level)
    return float(yaw), float(pitch), float(roll)
