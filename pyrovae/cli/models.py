"""Commands about whole models: fit, compare, check, info."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import numpy as np
import typer

from pyrovae import arguments, baselines, noise
from pyrovae.cli.main import Check, Data, Index, Model, Out, Seed, app, load, log, shows_progress
from pyrovae.refusals import bad_value

if TYPE_CHECKING:
    import pandas as pd

    from pyrovae.model import VAE

N = TypeVar("N", int, float)
_COMPONENTS = 10  # of a mixture
LEVELS = ("bernoulli", "categorical", "ordinal")

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
LatentDim = Annotated[int, typer.Option(min=1, help="Entries of z.")]
Epochs = Annotated[int, typer.Option(min=1, help="Passes over the training rows.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows a step.")]
Rate = Annotated[float, typer.Option(help="Learning rate.")]


@app.command()
def fit(
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="File for the model.")],
    family: Families = None,
    resolution: Resolutions = None,
    date: Dates = None,
    drop: Drop = None,
    index: Index = None,
    latent_dim: LatentDim = 8,
    validation: Annotated[
        float,
        typer.Option(
            min=0, max=0.9, help="Share of the rows that is held out and evaluated after every epoch."
        ),
    ] = 0.0,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many epochs without a better validation ELBO.")
    ] = None,
    epochs: Epochs = 50,
    batch_size: BatchSize = 128,
    lr: Rate = 1e-3,
    seed: Seed = 0,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder of this fit. The same command resumes an interrupted fit.")
    ] = None,
) -> None:
    """Fit a VAE to the rows of a file, each column with a family of its own, and print the families."""
    from pyrovae import storage, training

    with storage.named(out, "a file to write to"):
        storage.require_file(out)
    table = _Table(data, index, family, resolution, date, drop, seed)
    train, held_out = table.split(validation)
    vae = table.vae(train, latent_dim)
    columns: Any = vae.table
    print(columns.summary().to_string(index=False))
    history = training.fit(
        vae,
        train,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        validation=held_out if len(held_out) else None,
        patience=patience,
        progress=shows_progress(),
        checkpoint=checkpoint,
    )
    if history.stopped == "interrupted":
        log.warning("Interrupted after %d epochs. %s was not written.", len(history), out)
        log.warning(
            "The same command goes on." if checkpoint else "With --checkpoint, the same command would go on."
        )
        raise typer.Exit(130)
    vae.save(out)
    log.info("%s", history)


@app.command()
def compare(
    data: Data,
    models: Annotated[
        str,
        typer.Option(
            help="Names with commas: vae, mixture (gaussian_mixture) and the names of the baselines. A number after a "
            "colon is the number of latent entries or components, such as vae:2,ppca:4."
        ),
    ] = "vae,ppca,mixture",
    test: Annotated[
        float, typer.Option(min=0.01, max=0.9, help="Share of the rows that is held out and scored.")
    ] = 0.2,
    out: Out = "-",
    family: Families = None,
    resolution: Resolutions = None,
    date: Dates = None,
    drop: Drop = None,
    index: Index = None,
    latent_dim: LatentDim = 8,
    epochs: Epochs = 50,
    batch_size: BatchSize = 128,
    lr: Rate = 1e-3,
    seed: Seed = 0,
    check: Check = True,
) -> None:
    """Fit VAEs and baselines to the same rows and rank them by log P(x) of held-out rows."""
    from pyrovae import comparison, training
    from pyrovae.cli import files

    table = _Table(data, index, family, resolution, date, drop, seed)
    train, held_out = table.split(test)
    vae = table.vae(train, latent_dim)
    columns: Any = vae.table
    codes, scored = columns.encode(train), columns.encode(held_out)
    made = {
        name: _made(name, latent_dim, codes.shape[1], lambda dim: table.vae(train, dim))
        for name in models.split(",")
    }
    pairs = {name: model for name, model in made.items() if hasattr(model, "table")}
    for name, model in made.items():
        if name not in pairs:
            log.info("%s", model.fit(codes).summary())
    # Refuses models that cannot be compared before the long fits.
    comparison.compare(made, scored[:2], method="importance", num_samples=2, check=False, training_rows=True)
    for name, pair in pairs.items():
        log.info("%s", name)
        training.fit(
            pair, codes, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, progress=shows_progress()
        )
    found = comparison.compare(made, scored, seed=seed, progress=shows_progress(), check=check)
    if out == "-":
        print(found)
        return
    with files.writing(out) as put:
        put(found)


@app.command()
def check(
    model: Model,
    data: Data,
    method: Annotated[str, typer.Option(help="A method of evidence.METHODS.")] = "auto",
    seed: Seed = 0,
    index: Index = None,
) -> None:
    """Try a method on rows simulated from the model and count those that it trusts and yet misses."""
    from pyrovae import evidence
    from pyrovae.cli import files

    pair, table = load(model)
    print(evidence.check(pair, files.Rows(data, index, table).whole(), method=method, seed=seed))


@app.command()
def info(model: Model) -> None:
    """Print what a model is: its columns and families, its fit, and the versions that wrote it."""
    from pyrovae import storage
    from pyrovae.training import History

    found, table = load(model)
    versions = storage.read(model)[1]["versions"]
    fitted = getattr(found, "fitted", None)
    print(found.summary() if hasattr(found, "summary") else found)
    if table is not None:
        print(table.summary().to_string(index=False))
    if fitted is not None:
        print(f"fitted to {fitted.rows} rows: {History(**fitted.history)}")
    print(", ".join(f"{name} {version}" for name, version in versions.items()))


class _Table:
    """The rows of a file, and what the options say about its columns.

    Args:
        data, index, family, resolution, date, drop, seed: as the commands take them.

    Raises:
        ValueError, OSError: as ``files.Rows``; a column of dates without a choice of what they mean.
    """

    def __init__(
        self,
        data: str,
        index: str | None,
        family: list[str] | None,
        resolution: list[str] | None,
        date: list[str] | None,
        drop: list[str] | None,
        seed: int,
    ) -> None:
        from pyrovae.cli import cells, files

        self._seed = seed
        self._families: dict[str, Any] = dict(_named("--family", family)) | dict.fromkeys(drop or ())
        self._resolution = {
            name: _number("--resolution", step, float) for name, step in _named("--resolution", resolution)
        }
        rows, parts = files.Rows(data, index).whole(), _named("--date", date)
        for name, part in parts:
            arguments.choice(f"--date {name}", part, cells.PARTS)
            if name not in rows:
                raise bad_value(
                    "--date", f"a column of {data}, {list(rows.columns)}", repr(name), "Name one of these."
                )
        self._frame = cells.with_dates(rows, parts, {name for name, given in self._families.items() if given})
        undecided = [name for name in cells.dates(self._frame) if name not in self._families]
        if undecided:
            name = undecided[0]
            came = f"dates in {', '.join(map(repr, undecided))}, first {self._frame[name].dropna().iloc[0]!s}"
            fix = f"Choose what they mean: --date {name}=days, a part of them such as --date {name}=month, or --drop {name}."
            raise bad_value(data, "numbers, booleans or labels in every column", came, fix)

    def split(self, share: float) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return training rows and a random share of held-out rows, none of which has a label that the former lack."""
        import pandas as pd

        frame, held_out = self._frame, np.zeros(len(self._frame), dtype=bool)
        order = np.random.default_rng(self._seed).permutation(len(frame))
        held_out[order[: round(share * len(frame))]] = True
        for name in frame:
            if not pd.api.types.is_numeric_dtype(frame[name]) or self._families.get(name) in LEVELS:
                held_out &= frame[name].isna() | frame[name].isin(frame[name][~held_out])
        return frame[~held_out], frame[held_out]

    def vae(self, train: pd.DataFrame, latent_dim: int) -> VAE:
        """Return a VAE of the training rows that is not fitted yet."""
        from pyrovae import VAE

        with noise.seeded(noise.derive(self._seed, noise.Stream.WEIGHTS)):
            return VAE.for_table(train, latent_dim, families=self._families, resolution=self._resolution)


def _named(option: str, values: Iterable[str] | None) -> list[tuple[str, str]]:
    """Return the pairs of an option COLUMN=VALUE."""
    pairs = [value.rpartition("=") for value in values or ()]
    for name, _, value in pairs:
        if not name or not value:
            raise typer.BadParameter(f"expected COLUMN=VALUE, got {name or value!r}", param_hint=option)
    return [(name, value) for name, _, value in pairs]


def _number(option: str, text: str, kind: type[N]) -> N:
    try:
        return kind(text)
    except ValueError:
        raise typer.BadParameter(f"expected a number, got {text!r}", param_hint=option) from None


def _made(text: str, latent_dim: int, columns: int, vae: Callable[[int], VAE]) -> Any:
    """Return a model of a name, or of name:number; ``vae`` returns a VAE with so many entries of z."""
    name, _, given = text.strip().partition(":")
    number = _number("--models", given, int) if given else None
    if name == "vae":
        return vae(number or latent_dim)
    name = "gaussian_mixture" if name == "mixture" else name
    known = sorted(name for name, kind in baselines.REGISTRY.items() if issubclass(kind, baselines.Baseline))
    kind: Any = baselines.REGISTRY[arguments.choice("--models", name, ("vae", "mixture", *known))]
    sizes = [each for each in inspect.signature(kind).parameters.values() if each.default is each.empty]
    if not sizes:
        if given:
            raise typer.BadParameter(f"{name} takes no number, got {text!r}", param_hint="--models")
        return kind()
    default = min(latent_dim, max(1, columns - 1)) if sizes[0].name == "latent_dim" else _COMPONENTS
    return kind(number or default)
