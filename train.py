"""Trains CMSBERT-CLR; ``python train.py`` alone trains on the embedded corpus, ``--help`` lists the options."""

import sys

if __name__ == "__main__":
    try:
        from cmsbert_fast.threads import wait_without_spinning

        wait_without_spinning()

        from cmsbert_fast.training.runs import main  # takes seconds; Ctrl-C may come meanwhile

        status = main(sys.argv[1:])
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)
