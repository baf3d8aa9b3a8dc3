"""The words of a video: from a transcript or a recogniser, each with its time in the sound."""
