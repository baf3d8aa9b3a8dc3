"""The voice, 100 times a second: pitch, voicing, glottal and spectral parameters, in numpy and scipy."""
