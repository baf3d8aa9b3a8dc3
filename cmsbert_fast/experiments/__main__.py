"""``python -m cmsbert_fast.experiments tables 1 2 3 4 ...``: see ``--help``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    try:
        from cmsbert_fast.experiments.command import main  # takes seconds; Ctrl-C may come meanwhile

        status = main(sys.argv[1:], configs=Path(__file__).parents[2] / "configs")
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)
