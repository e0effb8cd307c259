"""`python -m noisyflow` is the command `noisyflow`."""

import sys

from noisyflow.cli import main

if __name__ == "__main__":
    sys.exit(main())
