"""Trains CMSBERT-CLR; ``python train.py`` alone trains on the embedded corpus, ``--help`` lists the options."""

import sys
from pathlib import Path

if __name__ == "__main__":
    try:
        from cmsbert_fast.threads import wait_without_spinning

        wait_without_spinning()

        from cmsbert_fast.training.runs import main  # takes seconds; Ctrl-C may come meanwhile

        status = main(sys.argv[1:], embedded_config=Path(__file__).parent / "configs" / "embedded.yaml")
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)
