"""Prints `docs/objectives.md`: ``python -m efface.adapters.objectives``."""

import sys

from .document import document

if __name__ == "__main__":
    sys.stdout.write(document())
