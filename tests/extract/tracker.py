"""Stands in for MediaPipe: the brightness of a picture says what it shows. Run as ``python tracker.py MESH``.

Black: no face; grey: one; white: two. The face is always that of MESH.
"""

import struct
import sys

import numpy as np


def main() -> None:
    """Answers as ``cmsbert_fast/extract/face/tracker.py`` does."""
    mesh = np.load(sys.argv[1]).astype("<f4").tobytes()
    source, output = sys.stdin.buffer, sys.stdout.buffer

    def send(kind: bytes, payload: bytes) -> None:
        output.write(struct.pack("<cI", kind, len(payload)) + payload)
        output.flush()

    send(b"V", b'{"version": "0.0", "detector": true}')
    while head := source.read(5):
        kind, length = struct.unpack("<cI", head)
        payload = source.read(length)
        if kind == b"E":
            send(b"E", payload)
            continue
        faces = round(np.frombuffer(payload, np.uint8, offset=12).mean() / 128)
        send(b"M", payload[:8] + struct.pack("<Hf", faces, 0.9 if faces else 0.0) + (mesh if faces else b""))


if __name__ == "__main__":
    main()
