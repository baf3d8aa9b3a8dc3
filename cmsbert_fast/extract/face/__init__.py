"""The face: a mesh of 478 points by MediaPipe, and what its geometry measures."""
