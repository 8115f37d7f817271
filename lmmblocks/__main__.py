"""``python -m lmmblocks``: the command line."""

import sys

from .cli import main

sys.exit(main())
