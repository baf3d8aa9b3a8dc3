"""Data: every file this field has on disk, read safely into one form (see ``docs/data.md``)."""

from collections.abc import Sequence
from pathlib import Path

from .example import SPLITS, Corpus, DataError, Example, ReadReport
from .source import Source, collect

__all__ = ["SPLITS", "Corpus", "DataError", "Example", "ReadReport", "open_source", "read_corpus"]

KNOWN_FORMATS = ("a folder with a table of segments (segments.tsv: id, split, start, stop, label, text) and streams",)


def open_source(
    source: str | Path,
    *,
    visual: str | Sequence[str] = (),
    acoustic: str | Sequence[str] = (),
    words: str | None = None,
    label: str | None = None,
    folds: str | Path | None = None,
    fold: int | None = None,
) -> Source:
    """Recognise a source from its content, without reading its examples. Arguments and errors as in `read_corpus`."""
    from . import segments
    from .folds import read_folds

    path = Path(source)
    if not path.exists():
        raise DataError(f"Check the path of the data: {path} does not exist.")
    table = segments.find_table(path)
    if table is not None:
        return segments.segment_source(
            table,
            visual=visual,
            acoustic=acoustic,
            words=words,
            label=label,
            folds=None if folds is None else read_folds(folds, fold),
        )
    raise DataError(f"Give data in a form that can be read; {path} is none of: " + "; ".join(KNOWN_FORMATS) + ".")


def read_corpus(
    source: str | Path,
    *,
    visual: str | Sequence[str] = (),
    acoustic: str | Sequence[str] = (),
    words: str | None = None,
    label: str | None = None,
    folds: str | Path | None = None,
    fold: int | None = None,
) -> Corpus:
    """Read a corpus; its format is recognised from its content.

    Args:
        source: "embedded" for the embedded corpus, or the path of a file or folder.
        visual, acoustic: Names of the streams of each modality, where the source has streams: one name, or several
            whose features are joined. Empty: recognised by name (FACET, OpenFace: visual; COVAREP, openSMILE: acoustic).
            "none": that modality is left out. ``NAME@HZ`` gives the frame rate of files without times.
        words: The stream of words with times. A table of segments has its own text: with ``words`` frames are averaged
            per word (aligned examples), without it they are cut per segment. A ``.csd`` set takes its text from it
            ("none" is not possible there). MulT files: a table of id and text.
        label: The column or stream of labels where there are several ("happy" of MOSEI, "regression_labels_T" of SIMS).
        folds: A JSON file of video (or utterance) ids by split; replaces the source's own splits.
        fold: Which fold, counted from 1, where there are several.

    Returns:
        The corpus in memory (memory-mapped where the source was converted). ``corpus.report`` says what was found and
        what was left out or altered; print it. Splits are "train", "valid", "test" as the source or the folds say;
        a source without splits has the one split "all" (enough for prediction, not for training).

    Raises:
        DataError: The source cannot be used as it is; the message is a sentence that says what to do.
    """
    if str(source) == "embedded":
        from .embedded import embedded_corpus

        return embedded_corpus(seed=0)
    return collect(
        open_source(source, visual=visual, acoustic=acoustic, words=words, label=label, folds=folds, fold=fold)
    )
