"""``python -m cmsbert_fast COMMAND``: see ``--help``."""

import sys

from cmsbert_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
