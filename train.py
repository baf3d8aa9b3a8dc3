"""Trains CMSBERT-CLR: ``python train.py`` for the embedded corpus, ``python train.py --help`` for everything else."""

import sys
from pathlib import Path

from cmsbert_fast.training.loop import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], embedded_config=Path(__file__).parent / "configs" / "embedded.yaml"))
