"""The command line: one module per noun, and the only place in efface that prints.

Read `main.py` for the commands, `options.py` for what they share, `failure.py` for the exit codes.
"""

from .main import app, run

__all__ = ["app", "run"]
