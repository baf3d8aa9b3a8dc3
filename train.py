"""Trains CMSBERT-CLR: ``python train.py`` for the embedded corpus, ``python train.py --help`` for everything else."""

import sys
from pathlib import Path

if __name__ == "__main__":
    try:
        from cmsbert_fast.training.runs import main  # takes seconds, in which Ctrl-C may come

        status = main(sys.argv[1:], embedded_config=Path(__file__).parent / "configs" / "embedded.yaml")
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)
