"""The demo as a Space: the same page, open to the Space's own proxy."""

import sys

from escdiff.demo.__main__ import main

sys.argv += ["--host", "0.0.0.0", "--queue", "32"]
main()
