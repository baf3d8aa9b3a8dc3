"""``python -m cmsbert_fast.data``: convert a source once, or look at it."""

import sys
from collections.abc import Sequence
from pathlib import Path

from cmsbert_fast import commandline
from cmsbert_fast.commandline import examples, nobody_reads
from cmsbert_fast.data import convert, open_source, read_corpus
from cmsbert_fast.data.example import Corpus, DataError, outlines
from cmsbert_fast.data.inspection import draw, summary
from cmsbert_fast.data.request import DataRequest, add_options, options_in
from cmsbert_fast.data.task import TASKS
from cmsbert_fast.data.text import printable


class _Parser(commandline.Parser):
    failure = DataError


def command_parser(prog: str = "python -m cmsbert_fast.data") -> commandline.Parser:
    """The parser of the command line."""
    parser = _Parser(prog=prog, description="Converts a source once, or looks at it.")
    commands = parser.add_subparsers(dest="command", required=True)
    text = "write the memory-mapped form that training reads"
    one = commands.add_parser(
        "convert",
        help=text,
        description=f"{text[0].upper()}{text[1:]}. Interrupted, the same command continues.",
        epilog=examples(
            "%(prog)s mosi.pkl data/mosi", "%(prog)s sdk/ data/mosi --words words --visual facet --acoustic covarep"
        ),
    )
    one.add_argument("source", type=Path, metavar="SRC", help="a file or folder in a known format")
    one.add_argument("target", type=Path, metavar="DST", help="the new folder")
    add_options(one)
    text = "say what a source holds"
    look = commands.add_parser(
        "inspect",
        help=text,
        description=f"{text[0].upper()}{text[1:]}: splits, streams, labels, and what is wrong with them.",
        epilog=examples("%(prog)s DIR", "%(prog)s DIR --picture one.png --id v_2"),
    )
    look.add_argument("source", metavar="SRC", help="a file or folder in a known format, or 'embedded'")
    add_options(look)
    look.add_argument("--task", choices=TASKS, help="what to predict (default: what the labels are)")
    look.add_argument(
        "--max-length",
        type=int,
        default=50,
        metavar="N",
        help="count texts cut to N word pieces (default: 50)",
    )
    look.add_argument("--picture", type=Path, metavar="FILE", help="draw one example (.png, .pdf or .svg)")
    look.add_argument("--id", metavar="ID", help="which example to draw (default: the first)")
    return parser


def _inspect(request: DataRequest, picture: Path | None, name: str | None, max_length: int) -> None:
    """Prints a summary of the data, and draws one example where a picture is asked for."""
    if name is not None and picture is None:
        raise DataError("--id chooses the example to draw; add --picture FILE.")
    corpus = read_corpus(request)
    print(summary(corpus, request.task, max_length))
    if picture is not None:
        _draw(corpus, picture, name)


def _draw(corpus: Corpus, picture: Path, name: str | None) -> None:
    """Draws the example of a name, else the first; standardised with some 200 examples of all splits."""
    known = [(e.id, part, k) for part in corpus.splits.values() for k, e in enumerate(outlines(part))]
    example = next((part[k] for found, part, k in known if name in (None, found)), None)
    if example is None:
        raise DataError(f"Choose another --id: there is no example {name!r}.")
    draw(example, picture, [part[k] for _, part, k in known[:: max(1, len(known) // 200)]])
    print(printable(f"drew {example.id} in {picture}"))


def main(arguments: Sequence[str], prog: str = "python -m cmsbert_fast.data") -> int:
    """Run one command; 2 where the user has to change something, 130 after Ctrl-C, 141 where nobody reads."""
    try:
        options = command_parser(prog).parse_args(arguments)
        request = DataRequest.of(options.source, **options_in(options), task=getattr(options, "task", None))
        if options.command == "convert":
            print(convert.convert(open_source(request), options.target))
            print(printable(f"converted to {options.target}"))
        else:
            _inspect(request, options.picture, options.id, options.max_length)
        sys.stdout.flush()
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; the same command continues a conversion from here.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return nobody_reads()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
