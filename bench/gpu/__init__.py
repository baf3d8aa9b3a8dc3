"""The first minutes of a GPU, as one command: correctness, times, tuning, the rows of BENCHMARKS.md.

::

    python -m bench.gpu --output bench/results/gpu --limit 530      # what is not done yet, in order, within 530 s
    python -m bench.gpu --output bench/results/gpu --done tests     # without that stage
    python -m bench.gpu --output bench/results/gpu --list           # the stages, and what became of them
    python -m bench.gpu --output bench/results/gpu --write-tiles    # what was tuned, into kernels/tiles.json

Everything goes into one file, ``results.jsonl`` (:mod:`bench.lines`), line by line as it is measured; ``log.txt`` and
``junit.xml`` lie beside it. Each stage is a process with a time limit (in a rehearsal only the whole has one). One
that fails, or is stopped, is recorded so, and the next goes on. The same command takes up what is not done, and within
a stage what is not measured. Stages that do not fit the limit any more are left out and named: the last are worth
least. Ceilings are measured anew each time, and results are compared only with those of the card that gave them. After
a change of a kernel, take another folder.
``cp results.jsonl bench/results/NAME.jsonl && python -m bench.report`` makes the tables.

Triton's cache cannot be carried from another version of Python: its key holds Triton's own library. Stage ``warm``
compiles the variants that are timed on all cores instead, and ``TRITON_STORE_BINARY_ONLY=1`` keeps the cache small.
"""
