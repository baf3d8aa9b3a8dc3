"""Streams of frames, words and labels: reading them, assigning them, and cutting them by time."""
