"""Videos given to ``predict``: found by their content, and extracted."""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cmsbert_fast import extract as extraction
from cmsbert_fast.data.untrusted.files import open_regular
from cmsbert_fast.data.untrusted.first_bytes import LENGTH, is_recording
from cmsbert_fast.extract.__main__ import options_in
from cmsbert_fast.extract.options import ExtractOptions
from cmsbert_fast.models.base import Classifier
from cmsbert_fast.models.processing import CMSBertProcessor
from cmsbert_fast.training.errors import UsageError
from cmsbert_fast.training.extraction import modalities_of


class Extracted(NamedTuple):
    """What came of videos: the folder of their features, and the file of each by its name there."""

    folder: Path
    files: Mapping[str, Path]


def videos_among(given: Sequence[str]) -> list[Path]:
    """The files given, if they are videos or sound; an empty list for other data, of which there is one.

    Raises:
        UsageError: They are several, and not all of them videos.
    """
    paths = [Path(name) for name in given]
    videos = [path for path in paths if _is_recording(path)]
    if len(videos) == len(paths):
        return videos
    if len(paths) > 1:
        other = next(path for path in paths if path not in videos)
        raise UsageError(f"Give one file or folder of data, or only videos: {other} is not a readable video.")
    return []


def _is_recording(path: Path) -> bool:
    try:
        with open_regular(path) as file:
            return is_recording(file.read(LENGTH))
    except (OSError, ValueError):  # a folder, 'embedded', or what the reader of data will complain of
        return False


def check_trained_on_videos(processor: CMSBertProcessor, model: Classifier) -> None:
    """Finds a model that reads frames and was not trained on extracted ones, before videos are extracted for it.

    Raises:
        UsageError: With what to do about it.
    """
    for modality in modalities_of(model.config):
        if modality not in (processor.extraction or {}):
            raise UsageError(
                f"The {modality} features that this model was trained on were not extracted from video: a model of "
                "released COVAREP or FACET features cannot score others, even where their sizes agree; extract the "
                "training videos with the same command (python -m cmsbert_fast.extract) and train on them."
            )


def extract_videos(videos: Sequence[Path], options: ExtractOptions, beside: Path | None) -> Extracted:
    """Extracts videos; says where their features are.

    Args:
        videos: The files.
        options: How.
        beside: The output beside which the folder of features is made; None: a folder for temporary files.

    Raises:
        UsageError: No segment came of them, or the folder has features of other videos, which would be scored, too.
        DataError: They cannot be extracted as asked.
    """
    if beside is None:
        folder = Path(tempfile.mkdtemp(prefix="cmsbert-features-"))
    else:
        folder = beside.with_name(f"{beside.stem}-features")
    if others := extraction.others_in(folder, videos):
        raise UsageError(
            f"Choose another --output or --page: {folder} has features of other videos ({', '.join(others[:3])}"
            f"{', ...' * (len(others) > 3)}), which would be scored, too."
        )
    print(f"extracting {len(videos)} video{'s' * (len(videos) != 1)} into {folder}", file=sys.stderr, flush=True)
    summary = extraction.extract(videos, folder, options)
    print(summary.text, file=sys.stderr)
    if not summary.segments:
        raise UsageError("There is nothing to score: no video has a segment; the lines above say why.")
    return Extracted(folder, {name: result.file for name, result in summary.results.items()})


def extract_options(given: argparse.Namespace, videos: Sequence[Path]) -> ExtractOptions:
    """What the command line asks for, checked where there are videos.

    Raises:
        UsageError: There are none, and yet something is asked for.
        DataError: A file or a package is missing.
    """
    options = options_in(given)
    if videos:
        options.check()
    elif options != ExtractOptions():
        raise UsageError("Leave out the options of extraction, such as --transcript: the data are no videos.")
    return options
