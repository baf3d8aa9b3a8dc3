"""Streams of frames: files, and cutting by time."""
