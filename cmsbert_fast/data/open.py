"""Opening data: the format is recognised from the content."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from cmsbert_fast.data.example import MODALITIES, Clock, Corpus, DataError, Example, no_frames, unreadable, with_frames
from cmsbert_fast.data.folds import read_folds, video_of
from cmsbert_fast.data.formats import (
    converted,
    fet,
    mag,
    misa,
    mmsa,
    mult,
    ur_funny,
    ur_funny_sdk,
)
from cmsbert_fast.data.mapped import Resident
from cmsbert_fast.data.request import DataRequest
from cmsbert_fast.data.segment_table import find_table, read_segments
from cmsbert_fast.data.source import Source, collect
from cmsbert_fast.data.tables import SUFFIXES, read_table
from cmsbert_fast.data.task import with_task
from cmsbert_fast.data.untrusted import pickles
from cmsbert_fast.data.untrusted.files import open_regular
from cmsbert_fast.data.untrusted.first_bytes import LENGTH, check_first_bytes
from cmsbert_fast.data.untrusted.limits import Budget, limit_of
from cmsbert_fast.data.wrappers import blaming, guarded, unlabelled, with_folds, without

KNOWN_FORMATS = (
    "a table of segments (.tsv or .csv: id, text; split, label; start, stop) with streams beside it (.csd files, or "
    "sub-folders of .npy or .csv files), IEMOCAP's included",
    "a folder of CMU-MultimodalSDK .csd files with words and labels",
    "the raw folder of CMU-MOSI or CMU-MOSEI (Transcript, Labels)",
    "MMSA's aligned or unaligned .pkl (MOSI, MOSEI, CH-SIMS)",
    "MAG-BERT's .pkl",
    "MISA's or MMIM's folder of train.pkl, dev.pkl and test.pkl",
    "MulT's .pkl with a table of words",
    "UR-FUNNY's .pkl (HKT), or its authors' folder of six",
    "IEMOCAP's .pkl of DialogueRNN",
    "MMSA-FET's .pkl of single clips with a table of words",
    "a folder that 'python -m cmsbert_fast.data convert' wrote",
)


def open_source(source: str | Path | DataRequest, **options: Any) -> Source:
    """Recognise a source from its content, without reading its examples. Arguments and errors as in `read_corpus`."""
    request = DataRequest.of(source, **options)
    path = request.path
    try:
        if not path.exists():
            raise DataError(f"Check the path of the data: {path} does not exist.")
        if converted.is_converted(path):
            raise DataError(f"Use {path} as it is: it is already converted.")
        if path.is_file() and path.suffix.lower() == ".csd":
            raise DataError(
                f"Give the folder of {path.name}: a set of .csd files has words, labels and frames in several."
            )
        if path.is_file():
            _check_content(path)
        found = _open_streams(path, request) or _open_pickle(path, request)
        if found is None:
            _check_content(path)
            known = "; ".join(KNOWN_FORMATS)
            raise DataError(f"Give data in a form that can be read; {path} is none of: {known}.")
    except PermissionError as error:
        raise unreadable(str(error.filename or path)) from error
    except OSError as error:
        raise DataError(f"Make {path} readable: {error}.") from error
    if request.folds is not None and Path(request.folds).is_file():
        # A conversion that was begun with one file of folds must not continue with another.
        found.files = [*found.files, Path(request.folds)]
        found.listed = read_folds(request.folds, request.fold).ids
    found.request = request
    return found


def _check_content(path: Path) -> None:
    """Finds files, the path or those in its folder, that are packed, incomplete, or tables of another encoding.

    Raises:
        DataError: There is one; the message names it.
    """
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    tables = []
    for file in files:
        is_table = file.suffix.lower() in SUFFIXES
        with open_regular(file) as opened:
            head = opened.read(LENGTH)
        if head or not is_table:  # an empty table lacks a header, as its reader says
            check_first_bytes(file.name, head)
        if path.is_dir() and is_table:
            read_table(file)
            tables.append(file)
    if len(tables) == 1:
        read_segments(tables[0])  # says which columns are missing


def _open_streams(path: Path, request: DataRequest) -> Source | None:
    """A table of segments or a folder of ``.csd`` files."""
    from cmsbert_fast.data.formats import cmu_raw, csd_folder, iemocap, segments

    table = find_table(path)
    if table is not None:
        rows = read_segments(table, request.label, request.labels)
        if iemocap.recognise(rows):
            return iemocap.iemocap_source(table, rows, request)
        return segments.segments_source(table, rows, request)
    if csd_folder.recognise(path):
        return csd_folder.csd_folder_source(path, request)
    layout = cmu_raw.find(path)
    return None if layout is None else cmu_raw.cmu_raw_source(layout, request)


def _open_pickle(path: Path, request: DataRequest) -> Source | None:
    """A pickle of any format, as the request wants it."""
    found = _read_pickle(path, request)
    if found is None:
        return None
    found = found if request.labels else unlabelled(found)
    takes_words = found.format in (mult.FORMAT, fet.FORMAT)
    return without(with_folds(found, request), request.left_out(found.format, takes_words))


def _read_pickle(path: Path, request: DataRequest) -> Source | None:
    with blaming(path.name, "one of the known formats"):
        if ur_funny_sdk.recognise(path):
            return guarded(ur_funny_sdk.ur_funny_sdk_source(path, request))
        if (files := misa.find(path)) and misa.recognise(pickles.load(next(iter(files.values())))):
            return guarded(misa.misa_source(path, files, request))
        if path.is_dir():
            several = sorted(p for p in path.iterdir() if p.is_file() and pickles.is_pickle(p))
            if len(several) > 1 and fet.recognise(pickles.load(several[0])):
                return guarded(fet.fet_source(path, several, request))
            if len(several) > 1:
                raise DataError(f"Choose one of the files of {path}: {', '.join(p.name for p in several)}.")
            if not several:
                return None
            path = several[0]
        if not pickles.is_pickle(path):
            return None
        root, data = pickles.load_mapped(path)
        if fet.recognise(root):
            found = fet.fet_source(path, [path], request)
        elif isinstance(root, tuple):
            from cmsbert_fast.data.formats import iemocap

            if not iemocap.recognise_pickle(root):
                return None
            found = iemocap.iemocap_pickle_source(path, root, request)
        elif mmsa.recognise(root):
            found = mmsa.mmsa_source(path, root, request)
        elif mult.recognise(root):
            found = mult.mult_source(path, root, request)
        elif ur_funny.recognise(root):
            found = ur_funny.ur_funny_source(path, root, request)
        elif mag.recognise(root):
            found = mag.mag_source(path, root, request)
        else:
            return None
        found.budget = Budget(limit_of(path))
        return guarded(found, Resident(data))


def _corpus_without(corpus: Corpus, modalities: list[str]) -> Corpus:
    """A corpus in memory with some modalities left out."""
    if not modalities:
        return corpus
    none = no_frames()
    visual, acoustic = "visual" not in modalities, "acoustic" not in modalities
    splits = {
        split: [with_frames(e, e.visual if visual else none, e.acoustic if acoustic else none) for e in examples]
        for split, examples in corpus.splits.items()
    }
    report = replace(corpus.report, notes=[*corpus.report.notes, f"left out: {', '.join(modalities)}"])
    return replace(
        corpus,
        splits=splits,
        report=report,
        visual_size=corpus.visual_size * visual,
        acoustic_size=corpus.acoustic_size * acoustic,
    )


def read_corpus(source: str | Path | DataRequest, **options: Any) -> Corpus:
    """Read a corpus; its format is recognised from its content.

    Args:
        source: "embedded" for the embedded corpus, the path of a file or folder, or a whole request.

    Keyword arguments (the fields of `DataRequest`):
        visual, acoustic: Names of the streams of each modality, where the source has streams: one name, or several
            whose features are joined. Empty: recognised by name (FACET, OpenFace: visual; COVAREP, openSMILE:
            acoustic). "none": that modality is left out. ``NAME@HZ`` gives the frame rate of files without times.
        columns: Features to read, by their names in csv files or the metadata of ``.csd`` files: patterns with commas
            between, ``AU*,gaze*``. None: all.
        words: The stream of words with times. A table of segments has its own text: with ``words`` frames are averaged
            per word (aligned examples), without it they are cut per segment. A ``.csd`` set takes its text from it
            ("none" is not possible there). MulT files: a table of id and text.
        average_words: False: frames are not averaged per word but cut per segment, and `Example.frame_words` tells the
            word of each.
        label: The column or stream of labels where there are several ("happy" of MOSEI, "regression_labels_T" of SIMS),
            or NAME.COLUMN for a column of one of several streams. Several columns, "happy,sad", are several labels at
            once: of each, whether it is above 0; "emotions" are all six of MOSEI.
        folds: A JSON file of video (or utterance) ids by split; replaces the source's own splits. IEMOCAP: also
            "speaker" (leave one of the ten speakers out) or "random".
        fold: Which fold, counted from 1, where there are several (of IEMOCAP, of a table's column "fold"), of the
            source or of what was converted from it.
        task: "classification" or "regression" (`cmsbert_fast.data.task.with_task`); None: what the labels are.
        labels: False for prediction: labels are None, need not be there, and no example is dropped for lack of one.
        clocks: True: examples of a table of segments or a ``.csd`` set keep the times of their words and frames
            (`Example.clock`); those of other formats have none. Conversion does not keep them. `clock_of` reads those
            of one example.

    Returns:
        The corpus in memory (memory-mapped where the source was converted). Print ``corpus.report``: it says what was
        found, dropped and altered. Splits are "train", "valid", "test" as the source or the folds say;
        a source without splits has the one split "all" (enough for prediction, not for training).

    Raises:
        DataError: The source cannot be used as it is; the message says in one sentence what to do.
    """
    request = DataRequest.of(source, **options)
    corpus = _read(request)
    return with_task(corpus, request.task) if request.labels else corpus


def clock_of(request: DataRequest, example: Example) -> Clock | None:
    """When an example and its parts are in the recording; None where the source does not tell, or tells no longer.

    Reads the example's video once more, with times, and no other.

    Args:
        request: What the example was read by.
        example: Of a corpus read without `DataRequest.clocks`.
    """
    if request.embedded:
        return None
    timed = replace(request, clocks=True)
    try:
        if converted.is_converted(timed.path) or (source := _open_streams(timed.path, timed)) is None:
            return None
        names = {example.id, video_of(example.id)}
        groups = sorted(source.groups, key=lambda group: group not in names)  # nearly always the first
        report = source.new_report()
        read = (again for group in groups for _, again in source.read(group, report))
        found = next((again for again in read if again.id == example.id), None)
    except (DataError, OSError, ValueError):
        return None  # it was readable before
    same = found is not None and found.words == example.words
    return found.clock if found and same and all(_as_many(found, example, m) for m in MODALITIES) else None


def _as_many(one: Example, other: Example, modality: str) -> bool:
    return len(getattr(one, modality)) == len(getattr(other, modality))


def _read(request: DataRequest) -> Corpus:
    if request.embedded:
        return _read_embedded(request)
    try:
        is_converted = converted.is_converted(request.path)
    except (OSError, ValueError) as error:  # a name that is too long or has a null byte, a folder that is closed
        raise DataError(f"Check the path of the data: {request.data:.200} cannot be read ({error!s:.300}).") from error
    if is_converted:
        if (request.words, request.label, request.columns) != (None, None, None):
            raise DataError(
                f"Leave out --words, --label and --columns: they were settled when {request.data} was converted."
            )
        return converted.open_converted(request)
    return collect(open_source(request))


def _read_embedded(request: DataRequest) -> Corpus:
    from cmsbert_fast.data.embedded import embedded_corpus

    for option in ("columns", "words", "label", "folds", "fold"):
        if getattr(request, option) is not None:
            raise DataError(f"Leave out --{option}: the embedded corpus has words, labels and splits of its own.")
    corpus = _corpus_without(embedded_corpus(seed=0), request.left_out("embedded"))
    if request.labels:
        return corpus
    bare = {split: [replace(e, label=None) for e in examples] for split, examples in corpus.splits.items()}
    return replace(corpus, splits=bare, classes=None)
