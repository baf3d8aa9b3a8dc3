"""``python -m cmsbert_fast.extract VIDEO... -o DIR``: words, face and voice of videos, to train or predict on."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cmsbert_fast import commandline
from cmsbert_fast import extract as extraction
from cmsbert_fast.commandline import examples, nobody_reads
from cmsbert_fast.data.example import DataError
from cmsbert_fast.extract.options import ExtractOptions

_NOTHING = 1  # exit status where no video has a segment


class _Parser(commandline.Parser):
    failure = DataError


def command_parser(prog: str = "python -m cmsbert_fast.extract") -> commandline.Parser:
    """The parser of the command line."""
    parser = _Parser(
        prog=prog,
        description="Extracts words, face and voice of videos, to train or predict on. The same command continues.",
        epilog=examples(
            "%(prog)s interview.mp4 --transcript interview.srt -o data/interview",
            "%(prog)s videos/ --transcript transcripts/ -o data/mine --no-face",
        ),
    )
    parser.add_argument("videos", nargs="+", type=Path, metavar="VIDEO", help="files or folders; sound alone is fine")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="the folder to write or to continue"
    )
    add_options(parser)
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds an option for each field of `ExtractOptions`."""
    words = parser.add_argument_group("words")
    words.add_argument(
        "--transcript",
        type=Path,
        metavar="PATH",
        help="what is said: a .txt, .srt or .vtt file, or a folder with one of each video's name",
    )
    words.add_argument("--asr", type=Path, metavar="DIR", help="a faster-whisper model, for what has no transcript")
    words.add_argument("--language", default="en", metavar="NAME", help="of the speech, for --asr (default: en)")
    words.add_argument(
        "--no-align", dest="align", action="store_false", help="no times of words; a plain text is one segment"
    )
    face = parser.add_argument_group("face")
    face.add_argument("--no-face", dest="face", action="store_false", help="words and voice only")
    face.add_argument(
        "--face-python", type=Path, metavar="FILE", help="a Python that has MediaPipe (default: this one)"
    )
    face.add_argument(
        "--face-model",
        type=Path,
        metavar="FILE",
        help="a face_landmarker.task of MediaPipe (default: the models in MediaPipe 0.10's wheel)",
    )


def options_in(given: argparse.Namespace) -> ExtractOptions:
    """The options that were given."""
    names = ("transcript", "asr", "language", "align", "face", "face_model", "face_python")
    return ExtractOptions(**{name: getattr(given, name) for name in names})


def main(arguments: Sequence[str], prog: str = "python -m cmsbert_fast.extract") -> int:
    """Runs the command; 1 where no video has a segment, 2 where the user has to change something, 130 after Ctrl-C."""
    try:
        given = command_parser(prog).parse_args(arguments)
        print(f"note: {extraction.CAVEAT}", file=sys.stderr)
        summary = extraction.extract(given.videos, given.output, options_in(given))
        print(summary.text)
        sys.stdout.flush()
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return nobody_reads()
    except OSError as error:
        print(f"error: Make room, or choose another --output: {error}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; the same command continues from here.", file=sys.stderr)
        return 130
    return 0 if summary.segments else _NOTHING


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
