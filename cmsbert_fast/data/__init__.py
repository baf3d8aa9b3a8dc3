"""Data: every file this field has on disk, read safely into one form (see ``docs/data.md``)."""

from cmsbert_fast.data.example import SPLITS, Corpus, DataError, Example
from cmsbert_fast.data.open import open_source, read_corpus
from cmsbert_fast.data.report import ReadReport
from cmsbert_fast.data.request import DataRequest

__all__ = ["SPLITS", "Corpus", "DataError", "DataRequest", "Example", "ReadReport", "open_source", "read_corpus"]
