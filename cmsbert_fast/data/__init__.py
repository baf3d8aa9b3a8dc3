"""Data: the files of this field, read safely into one form (see ``docs/data.md``).

`read_corpus` reads examples, `open_source` recognises a source without reading it. Every format has a file in
``formats``; streams that are cut by time are in ``streams``; what guards against untrusted files is in ``untrusted``.
"""

from cmsbert_fast.data.example import SPLITS, Corpus, DataError, Example
from cmsbert_fast.data.open import open_source, read_corpus
from cmsbert_fast.data.report import ReadReport
from cmsbert_fast.data.request import DataRequest

__all__ = ["SPLITS", "Corpus", "DataError", "DataRequest", "Example", "ReadReport", "open_source", "read_corpus"]
