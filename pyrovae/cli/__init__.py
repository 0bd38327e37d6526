"""The command line: each command is one call of the library, between reading a file and writing one."""

from pyrovae.cli import demo, models, rows
from pyrovae.cli.main import app

__all__ = ["app", "demo", "models", "rows"]
