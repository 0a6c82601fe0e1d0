"""``python -m oddity`` is the command ``oddity``."""

import sys

from oddity.app.cli import main

if __name__ == "__main__":
    sys.exit(main())
