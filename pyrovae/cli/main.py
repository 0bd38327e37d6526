"""The app: messages go to standard error by the logger ``pyrovae``. A refusal is one message; its exit code is 2 if it names an option."""

from __future__ import annotations

import ast
import errno
import logging
import os
import re
import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from pyrovae import saving, storage
from pyrovae.refusals import Refused, RefusedType

if TYPE_CHECKING:
    from pyrovae.tables import Table

log = logging.getLogger("pyrovae")

Model = Annotated[Path, typer.Argument(help="A model that `pyrovae fit` or `pv.save` wrote.")]
Data = Annotated[
    str,
    typer.Argument(
        help="Rows: a .csv, .tsv, .csv.gz, .tsv.gz, .parquet or .npz file; - reads CSV from standard input."
    ),
]
Out = Annotated[
    str,
    typer.Option(
        "--out", "-o", help="File to write, .csv, .tsv, .csv.gz, .tsv.gz or .parquet; - is standard output."
    ),
]
Index = Annotated[
    str | None,
    typer.Option(
        help="Column that labels the rows. It is no part of a row. A first column without a name is one, too."
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all noise.")]
Check = Annotated[
    bool, typer.Option(help="Try the method on rows simulated from the model. Without it, no row is trusted.")
]


class _Group(TyperGroup):
    """Commands whose refusals are a message and an exit code; a traceback is a mistake in pyrovae."""

    def invoke(self, ctx: Any) -> Any:
        handler = logging.StreamHandler()
        log.addHandler(handler)
        before = log.level
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("default", UserWarning)
                warnings.showwarning = lambda message, *_, **__: log.warning("%s", in_commands(str(message)))
                return super().invoke(ctx)
        except (Refused, RefusedType, FloatingPointError, OSError) as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # the reader of standard output has gone; typer ends the command
            text = str(error.strerror if isinstance(error, OSError) and error.strerror else error)
            argument = re.split(r"[\[ ]", getattr(error, "argument", ""))[0]
            option = self._option(ctx, argument)
            log.error("Error: %s", in_commands(option + text.removeprefix(argument) if option else text))
            _forget_output()
            raise typer.Exit(2 if option else 1) from None
        finally:
            log.removeHandler(handler)
            log.setLevel(before)

    def _option(self, ctx: Any, argument: str) -> str:
        """Return the option of the command that an argument of the library came from; "" if it came from none."""
        command = self.get_command(ctx, ctx.invoked_subcommand or "")
        options = {
            each.name: each.opts[0] for each in getattr(command, "params", ()) if each.opts[0][0] == "-"
        }
        return argument if argument in options.values() else options.get(argument, "")


app = typer.Typer(cls=_Group, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


_NAME = r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
#: What messages of the library say about frames, and what the commands say. {} is the column's name, and {option} that name for
#: the shell.
_IN_COMMANDS = (
    (rf"^(?:df|x)\[{_NAME}\](?=:)", "column {}"),
    (r"^(?:df|x)(?=: )", "DATA"),
    (rf"^(--\w+)\[{_NAME}\](?=:)", r"\1 {option}"),
    (rf"families=\{{{_NAME}: None\}}", "--drop {option}"),
    (rf"^df\[{_NAME}\](?= (?:has|is) )", "column {}"),
    (
        rf"pass df\[.* in its place\. Pass families=\{{{_NAME}: .*",
        "empty them. To keep them as labels, pass --family {option}=categorical.",
    ),
    (
        r"pass df\[.* in its place\. Pass a family.*",
        "empty them. To keep them, name a family or a resolution of the column.",
    ),
    (r"Pass pandas\.to_numeric\(.*", "Write the numbers alone, to make them numbers."),
    (r" The (?:second )?code makes these cells missing, (\d+) in all:", r" Others, in \1 rows:"),
    (rf" Pass families=\{{{_NAME}: \"categorical\"\}} to keep labels without this warning\.", ""),
    (r"Choose a meaning: .*; or leave", "Write it as a number, or leave"),
    (r"Drop the column, or leave", "Leave"),
    (
        rf"give a resolution: (?:df.*? and )?(?=resolution=.*?: (\S+?)\}})resolution=\{{{_NAME}: \S+?\}}",
        r"pass --resolution {option}=\1",
    ),
    (r"; or make two columns: .*", "; or make two columns, one of which is empty in these cells."),
    ("finite numbers, or NaN in missing cells", "finite numbers, or empty cells"),
    ("Pass NaN if these cells are missing", "Empty these cells if they are missing"),
    (r"Leave these cells missing \(None\)", "Empty these cells"),
    (r" df\[column\]\.astype\(.*", ""),
    (r"Pass \(.*\{.*\}\)\.", "Choose a family without options, or fit in Python by VAE.for_table."),
    (rf"Pass df\[{_NAME}\]\..* in its place\.", "Write these cells as text."),
    (r"Pass num_categories to the baseline if .*", "Leave the model out, or the column by --drop."),
)


def in_commands(message: str) -> str:
    """Return a message of the library in the words of the commands: columns of a file, and options.

    Example:
        >>> in_commands("df['a b']: expected an observed cell, got none. Leave it out by families={'a b': None}.")
        "column 'a b': expected an observed cell, got none. Leave it out by --drop 'a b'."
    """
    for pattern, words in _IN_COMMANDS:

        def put(found: re.Match[str], words: str = words) -> str:
            name = found[found.lastindex] if "{" in words and found.lastindex else ""
            option = shlex.quote(str(ast.literal_eval(name))) if "{option}" in words else ""
            return found.expand(words).format(name, option=option)

        message = re.sub(pattern, put, message)
    return message


def _forget_output() -> None:
    """Throw away what standard output cannot take, so that Python does not fail once more when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _version(wanted: bool) -> None:
    if wanted:
        from pyrovae import __version__

        show(__version__)
        raise typer.Exit


@app.callback()
def main(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings and errors only.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Variational autoencoders on Pyro whose log P(x) can be trusted."""
    log.setLevel(logging.WARNING if quiet else logging.INFO)


def show(text: object, end: str = "\n") -> None:
    """Print to standard output, at once; an error names it."""
    with storage.named("standard output", "a place to write to"):
        print(text, end=end, flush=True)


def shows_progress() -> bool:
    """Return whether progress is shown, which --quiet turns off."""
    return log.isEnabledFor(logging.INFO)


def load(path: Path) -> tuple[Any, Table | None]:
    """Return a saved model, and the table of its columns if it has one."""
    found = saving.load(path)
    return found, getattr(found, "table", None)
