"""The rows to fit to in a file, with what the options of fit and compare say about their columns."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Iterable
from typing import Annotated, Any, TypeVar

import numpy as np
import pandas as pd
import typer

from pyrovae import arguments, noise
from pyrovae.cli import cells, files
from pyrovae.cli.main import log
from pyrovae.model import VAE
from pyrovae.refusals import bad_value
from pyrovae.tables import Table

N = TypeVar("N", int, float)

Families = Annotated[
    list[str] | None,
    typer.Option("--family", metavar="COLUMN=FAMILY", help="Family of a column; may be repeated."),
]
Resolutions = Annotated[
    list[str] | None,
    typer.Option(
        "--resolution", metavar="COLUMN=STEP", help="Step to which a column was recorded; may be repeated."
    ),
]
Dates = Annotated[
    list[str] | None,
    typer.Option(
        "--date",
        metavar="COLUMN=PART",
        help="Number to take from a column of dates: days, year, month, day, dayofweek or hour; may be repeated.",
    ),
]
Drop = Annotated[
    list[str] | None, typer.Option("--drop", metavar="COLUMN", help="Column to leave out; may be repeated.")
]


class TrainingRows:
    """The rows to fit to in a file, with what the options say about their columns.

    Args:
        data, index, families, resolution, date, drop, hidden_dims, seed: as the commands take them.

    Raises:
        ValueError, OSError: as ``files.Rows``; an option names no column; a column of dates without a choice of what they
            mean.
    """

    def __init__(
        self,
        data: str,
        index: str | None,
        families: list[str] | None,
        resolution: list[str] | None,
        date: list[str] | None,
        drop: list[str] | None,
        hidden_dims: str,
        seed: int,
    ) -> None:
        self._seed = seed
        self._hidden_dims = [
            to_number("--hidden-dims", width, int) for width in hidden_dims.split(",") if width
        ]
        given = dict(_pairs("--family", families))
        self._families: dict[str, Any] = given | dict.fromkeys(drop or ())
        self._resolution = {
            name: to_number("--resolution", step, float) for name, step in _pairs("--resolution", resolution)
        }
        parts = _pairs("--date", date)
        for name, part in parts:
            arguments.choice(f"--date {name}", part, cells.PARTS)
        kept = {name for name, family in self._families.items() if family}
        self._frame = files.Rows(data, index, dates=parts, kept=kept, dropped=drop or ()).whole()
        for option, names in (
            ("--family", given),
            ("--resolution", self._resolution),
            ("--drop", drop or ()),
        ):
            for name in names:
                arguments.choice(option, name, tuple(self._frame.columns))
        undecided = cells.dates(self._frame, self._families)
        if undecided:
            name = shlex.quote(undecided[0])
            came = f"dates in {', '.join(map(repr, undecided))}, first {self._frame[undecided[0]].dropna().iloc[0]!s}"
            fix = f"Choose what they mean: --date {name}=days, a part of them such as --date {name}=month, or --drop {name}."
            raise bad_value(data, "numbers, booleans or labels in every column", came, fix)

    def split(self, option: str, share: float) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return training rows and a random share of held-out rows, none of which has a level that the former lack."""
        frame, held_out = self._frame, np.zeros(len(self._frame), dtype=bool)
        order = np.random.default_rng(self._seed).permutation(len(frame))
        wanted = round(share * len(frame))
        if share and not wanted:
            came = f"a share of {share:g} of {len(frame)}, which is none"
            raise bad_value(option, "rows to hold out", came, "Hold out a larger share.")
        held_out[order[:wanted]] = True
        for column in Table.of(frame, self._families, self._resolution).columns:
            if column.levels is not None:
                cells = frame[column.name]
                held_out &= cells.isna() | cells.isin(cells[~held_out])
        if share and not held_out.any():
            fix = "Leave out columns of text by --drop, or hold out fewer rows."
            raise bad_value(option, "rows to hold out, whose labels other rows have", "none", fix)
        return frame[~held_out], frame[held_out]

    def vae(self, train: pd.DataFrame, latent_dim: int) -> VAE:
        """Return a VAE of the training rows that is not fitted yet; say which columns are left out."""
        with warnings.catch_warnings(), noise.seeded(noise.derive(self._seed, noise.Stream.WEIGHTS)):
            warnings.filterwarnings("ignore", "These columns are left out")  # says how to choose in Python
            # Reading the file warned of these.
            warnings.filterwarnings("ignore", ".* has labels that look like (numbers|dates)")
            vae = VAE.for_table(
                train,
                latent_dim,
                families=self._families,
                resolution=self._resolution,
                hidden_dims=self._hidden_dims,
            )
        left_out = {} if vae.table is None else vae.table.left_out
        for name, why in left_out.items():
            if name not in self._families:
                option = shlex.quote(name)
                log.warning(
                    "%s is left out, %s. Choose by --drop %s or --family %s=….", name, why, option, option
                )
            elif self._families[name] is None:
                left_out[name] = "left out by --drop"
        return vae


def _pairs(option: str, values: Iterable[str] | None) -> list[tuple[str, str]]:
    """Return the pairs of an option COLUMN=VALUE."""
    pairs = [value.rpartition("=") for value in values or ()]
    for name, _, value in pairs:
        if not name or not value:
            came = repr(f"{name}={value}" if name else value)
            raise bad_value(option, "COLUMN=VALUE", came, "Give both sides of the equals sign.")
    return [(name, value) for name, _, value in pairs]


def to_number(option: str, text: str, kind: type[N]) -> N:
    """Return the number that an option spells."""
    try:
        return kind(text)
    except ValueError:
        raise bad_value(
            option, "a whole number" if kind is int else "a number", repr(text), "Give one."
        ) from None
