"""`python -m streamtap` is the command `streamtap`."""

import sys

from streamtap.cli import main

if __name__ == "__main__":
    sys.exit(main())
