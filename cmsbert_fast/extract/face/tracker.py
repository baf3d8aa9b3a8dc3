"""Finds the face in pictures with MediaPipe. A script of its own: its Python may have another numpy than ours.

    python -I tracker.py [face_landmarker.task]

It reads the messages of the decoder (``media/decode.py``) from standard input, and answers each F on standard output:

    V   once, at the start: JSON with "version", the mesh's, and "detector": whether M has a confidence
    M   a picture: time (float64), faces in it (uint16; as of the last look), confidence of the one that is followed
        (float32), and its points (478, 3) as float32 in pixels; without points where it is not seen
    E   the end of a video, as it came; the next may follow

MediaPipe 0.10 has its models in the wheel. Newer ones, and any to which a model is given, use that model through the
Tasks API. The face that is followed is the largest of the first picture with one; when it is gone for `_GONE` seconds,
the largest that is there. With the models of the wheel, the other faces are covered before the mesh is fitted.
"""

import json
import os
import struct
import sys

os.environ.setdefault("GLOG_minloglevel", "3")

import mediapipe
import numpy as np

_HEADER, _FRAME, _MESH = struct.Struct("<cI"), struct.Struct("<dHH"), struct.Struct("<dHf")
_LOOK, _GONE = 0.1, 2.0  # seconds between two looks of the detector; until another face is followed
_POINTS, _MOST = 478, 4
_APART = 0.1  # share of a box above which two boxes are one face


def overlap(one, other):
    """The shared area of two boxes (left, top, right, bottom) over that of the smaller."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / max(min(area(one), area(other)), 1e-9)


def area(box):
    """Width times height."""
    return (box[2] - box[0]) * (box[3] - box[1])


def distance(one, other):
    """Between the middles of two boxes."""
    return abs(one[0] + one[2] - other[0] - other[2]) + abs(one[1] + one[3] - other[1] - other[3])


def in_pixels(landmarks, width, height):
    """The points of a mesh, (478, 3) float32."""
    return np.array([(p.x, p.y, p.z) for p in landmarks], np.float32) * np.array((width, height, width), np.float32)


class Followed:
    """Which of the faces of a picture is the one that is followed."""

    def __init__(self):
        self._box, self._seen = None, -1e9

    def choose(self, boxes, time):
        """The index of its box; None where it is not there."""
        if not boxes:
            return None
        if self._box is None or time - self._seen > _GONE:
            chosen = max(range(len(boxes)), key=lambda k: area(boxes[k]))
        else:
            chosen = min(range(len(boxes)), key=lambda k: distance(boxes[k], self._box))
            size = self._box[2] - self._box[0]
            if distance(boxes[chosen], self._box) > 2 * size:  # a middle that moved by more than the face is another's
                return None
        self._box, self._seen = boxes[chosen], time
        return chosen


class Wheel:
    """The mesh and the detector that MediaPipe 0.10 has in its wheel."""

    detector = True

    def __init__(self):
        solutions = mediapipe.solutions
        self._mesh = solutions.face_mesh.FaceMesh(max_num_faces=1, refine_landmarks=True)
        self._detector = solutions.face_detection.FaceDetection(model_selection=0, min_detection_confidence=0.5)
        self._followed = Followed()
        self._next = -1e9
        self._others, self._count, self._confidence = [], 0, 0.0

    def find(self, picture, time):
        """Faces, confidence and points (478, 3) or None."""
        height, width = picture.shape[:2]
        if time >= self._next:
            self._next = time + _LOOK - 1e-6
            self._look(picture, time)
        for left, top, right, bottom in self._others:
            picture[max(int(top), 0) : max(int(bottom), 0), max(int(left), 0) : max(int(right), 0)] = 0
        found = self._mesh.process(picture).multi_face_landmarks
        points = in_pixels(found[0].landmark, width, height) if found else None
        return max(self._count, int(points is not None)), self._confidence, points

    def _look(self, picture, time):
        height, width = picture.shape[:2]
        boxes, scores = [], []
        for detection in self._detector.process(picture).detections or []:
            box = detection.location_data.relative_bounding_box
            left, top = box.xmin * width, box.ymin * height
            boxes.append((left, top, left + box.width * width, top + box.height * height))
            scores.append(float(detection.score[0]))
        chosen = self._followed.choose(boxes, time)
        self._count, self._confidence = len(boxes), 0.0 if chosen is None else scores[chosen]
        own = None if chosen is None else boxes[chosen]
        self._others = [b for k, b in enumerate(boxes) if k != chosen and (own is None or overlap(b, own) < _APART)]


class Model:
    """A ``face_landmarker.task`` through the Tasks API. It tells no confidence."""

    detector = False

    def __init__(self, path):
        from mediapipe.tasks.python import BaseOptions, vision

        options = vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=path), running_mode=vision.RunningMode.VIDEO, num_faces=_MOST
        )
        self._landmarker = vision.FaceLandmarker.create_from_options(options)
        self._followed, self._last = Followed(), -1

    def find(self, picture, time):
        """As `Wheel.find`, the confidence 0."""
        height, width = picture.shape[:2]
        self._last = max(self._last + 1, round(time * 1000))  # must grow
        image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=picture)
        found = self._landmarker.detect_for_video(image, self._last).face_landmarks
        faces = [in_pixels(face, width, height) for face in found]
        boxes = [(*face[:, :2].min(axis=0), *face[:, :2].max(axis=0)) for face in faces]
        chosen = self._followed.choose(boxes, time)
        return len(faces), 0.0, None if chosen is None else faces[chosen]


def send(output, kind, payload):
    """Writes a message."""
    output.write(_HEADER.pack(kind, len(payload)) + payload)
    output.flush()


def main():
    """Answers messages until there are no more."""
    source, output = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print does not get among the messages
    make = (lambda: Model(sys.argv[1])) if len(sys.argv) > 1 else Wheel
    tracker = make()
    version = {"version": mediapipe.__version__, "detector": tracker.detector}
    send(output, b"V", json.dumps(version).encode())
    while True:
        head = source.read(_HEADER.size)
        if len(head) < _HEADER.size:
            return
        kind, length = _HEADER.unpack(head)
        payload = source.read(length)
        if len(payload) < length:
            return
        if kind == b"E":
            send(output, b"E", payload)
            tracker = make()  # no trace of the last video
            continue
        time, height, width = _FRAME.unpack_from(payload)
        picture = np.frombuffer(payload, np.uint8, height * width * 3, _FRAME.size).reshape(height, width, 3).copy()
        count, confidence, points = tracker.find(picture, time)
        mesh = b"" if points is None else np.ascontiguousarray(points[:_POINTS], dtype="<f4").tobytes()
        send(output, b"M", _MESH.pack(time, count, confidence) + mesh)


if __name__ == "__main__":
    main()
