"""What readers should have made of values."""

import numpy as np

from cmsbert_fast.data import Corpus, Example


def find(corpus: Corpus, name: str) -> Example:
    return next(e for examples in corpus.splits.values() for e in examples if e.id == name)


def clean(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(np.asarray(values, dtype=np.float32), nan=0, posinf=0, neginf=0)
