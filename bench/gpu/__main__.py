"""See :mod:`bench.gpu`."""

import argparse
import json
import os
import sys
from pathlib import Path

from bench import lines
from bench.gpu import runner
from bench.gpu.stages import STAGES


def arguments(argv: list[str] | None) -> argparse.Namespace:
    names = [stage.name for stage in STAGES]
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description="Measures a GPU; see bench/gpu/__init__.py."
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder of results; is taken up again"
    )
    parser.add_argument("--limit", type=float, default=530.0, metavar="S", help="seconds for everything (default 530)")
    parser.add_argument("--done", nargs="+", default=[], choices=names, metavar="STAGE", help="stages not to run")
    parser.add_argument("--only", nargs="+", default=[], choices=names, metavar="STAGE", help="no stages but these")
    parser.add_argument("--warm", action="store_true", help="first compile what is timed, on all cores")
    parser.add_argument("--processes", type=int, default=max(1, len(os.sched_getaffinity(0)) - 2), metavar="N")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a rehearsal at tiny sizes, for "
                        "which TRITON_INTERPRET=1 is set")  # fmt: skip
    parser.add_argument("--list", action="store_true", help="print the stages and what became of them")
    parser.add_argument("--write-tiles", action="store_true", help="put what was tuned into kernels/tiles.json")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The command line: 0 if everything is done, 1 if something failed or is left."""
    options = arguments(argv)
    if options.list:
        states = runner.states(options.output)
        for stage in STAGES:
            state = states.get(stage.name, {"state": "not begun", "why": ""})
            print(f"{stage.name:16} {stage.limit:4.0f} s  {state['state']:10} {stage.gives} {state['why']}".rstrip())
        return 0
    if options.write_tiles:
        return write_tiles(options.output)
    if options.device == "cpu":
        # Read when Triton and the kernels are imported, which the stages do.
        os.environ |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "CMSBERT_BACKEND": "triton"}
    os.environ.setdefault("TRITON_STORE_BINARY_ONLY", "1")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    options.output.mkdir(parents=True, exist_ok=True)
    context = runner.Context(options.output.resolve(), options.device, options.processes)
    stages = [stage for stage in STAGES if not options.only or stage.name in options.only or stage.always]
    if not options.warm:
        stages = [stage for stage in stages if stage.name != "warm" or "warm" in options.only]
    import_everything()
    became = runner.run_all(stages, context, options.limit, options.done)
    for state in (runner.FAILED, runner.STOPPED, runner.LEFT_OUT):
        if names := [name for name, known in became.items() if known == state]:
            print(f"{state}: {', '.join(names)}")
    return 0 if set(became.values()) <= {runner.DONE} else 1


def import_everything() -> None:
    """What the stages need, once, in the process that they are forked from; nothing here touches the GPU."""
    from bench import steps, workload  # noqa: F401
    from bench.gpu import attention, loss, smoke, step  # noqa: F401


def write_tiles(output: Path) -> int:
    """The rows that stages of tuning found, into the table."""
    from cmsbert_fast.kernels import tune

    rows = [row for line in lines.read(output / runner.RESULTS) if line["kind"] == "tiles" for row in line["rows"]]
    tune.write(rows)
    print("\n".join(json.dumps(row) for row in rows) or "nothing beat the table")
    return 0


if __name__ == "__main__":
    sys.exit(main())
