"""``python -m pyrovae`` is the command line."""

from pyrovae.cli import app

if __name__ == "__main__":
    app(prog_name="pyrovae")
