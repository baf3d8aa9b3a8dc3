"""``python -m cmsbert_fast.experiments tables 1 2 3 4 ...``: see ``--help``."""

import sys

if __name__ == "__main__":
    try:
        from cmsbert_fast.experiments.command import main  # takes seconds; Ctrl-C may come meanwhile

        status = main(sys.argv[1:])
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)
