"""Commands about whole models: fit, compare, check, report, info."""

from __future__ import annotations

import inspect
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from pyrovae import arguments, baselines, comparison, evidence, storage, training
from pyrovae.cli import files
from pyrovae.cli.main import Check, Data, Index, Model, Seed, app, load, log, show, shows_progress
from pyrovae.cli.training_rows import Dates, Drop, Families, Resolutions, TrainingRows, to_number
from pyrovae.model import VAE
from pyrovae.refusals import Refused, bad_value
from pyrovae.reporting import report as write_report
from pyrovae.tables import Table

_COMPONENTS = 10  # of a mixture

LatentDim = Annotated[int, typer.Option(min=1, help="Entries of z.")]
Epochs = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Passes over the training rows; by default 50, or up to 500 for few rows.",
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows a step.")]
Rate = Annotated[float, typer.Option(help="Learning rate.")]
HiddenDims = Annotated[
    str, typer.Option(help="Hidden widths of the encoder; the decoder has them in reverse order.")
]


@app.command()
def fit(
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="File for the model.")],
    families: Families = None,
    resolution: Resolutions = None,
    date: Dates = None,
    drop: Drop = None,
    index: Index = None,
    latent_dim: LatentDim = 8,
    hidden_dims: HiddenDims = "200",
    validation: Annotated[
        float,
        typer.Option(
            min=0, max=0.9, help="Share of the rows that is held out and evaluated after every epoch."
        ),
    ] = 0.0,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many epochs without a better validation ELBO.")
    ] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = 128,
    lr: Rate = 1e-3,
    seed: Seed = 0,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder of this fit. The same command resumes an interrupted fit.")
    ] = None,
) -> None:
    """Fit a VAE to the rows of a file, each column with a family of its own, and print the families."""
    files.require_apart(out, data)
    files.beside(out).close()  # refuses a place that cannot be written to before the fit
    rows = TrainingRows(data, index, families, resolution, date, drop, hidden_dims, seed)
    train, held_out = rows.split("--validation", validation)
    vae = rows.vae(train, latent_dim)
    columns: Any = vae.table
    show(columns.summary().to_string(index=False))
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
            "Run the same command to resume." if checkpoint else "With --checkpoint, it could be resumed."
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
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", help="File or - to write as in score. Without it, a table is shown."),
    ] = None,
    families: Families = None,
    resolution: Resolutions = None,
    date: Dates = None,
    drop: Drop = None,
    index: Index = None,
    latent_dim: LatentDim = 8,
    hidden_dims: HiddenDims = "200",
    epochs: Epochs = None,
    batch_size: BatchSize = 128,
    lr: Rate = 1e-3,
    seed: Seed = 0,
    check: Check = True,
) -> None:
    """Fit VAEs and baselines to the same rows and rank them by log P(x) of held-out rows."""
    path = "-" if out is None else out
    files.require_apart(path, data)
    with files.writing(path) as put:
        rows = TrainingRows(data, index, families, resolution, date, drop, hidden_dims, seed)
        train, held_out = rows.split("--test", test)
        untrained = rows.vae(train, latent_dim)
        columns: Any = untrained.table
        codes, scored = columns.encode(train), columns.encode(held_out)
        made = {
            name: _made(name, latent_dim, codes.shape[1], lambda dim: rows.vae(train, dim))
            for name in models.split(",")
        }
        pairs = {name: model for name, model in made.items() if isinstance(model, VAE)}
        for name in made:
            if name not in pairs:
                _fit_baseline(name, made, untrained, columns, codes, scored)
        options: dict[str, Any] = {"seed": seed, "progress": shows_progress()}
        for name, pair in pairs.items():
            log.info("%s", name)
            training.fit(pair, codes, epochs=epochs, batch_size=batch_size, lr=lr, **options)
        found = comparison.compare(made, scored, check=check, **options)
        if out is None:
            show(found)
        else:
            put(found)


def _fit_baseline(name: str, made: dict[str, Any], vae: VAE, columns: Table, codes: Any, scored: Any) -> None:
    """Fit one of the models of ``compare``, and refuse it now if it cannot be compared with a VAE of the table."""
    with _named(name, columns.names):
        made[name].fit(codes)
        made[name].log_evidence(scored)  # refuses rows that it cannot score before the VAEs are fitted
    log.info("%s", made[name].summary())
    beside = any(isinstance(model, VAE) for model in made.values())
    if not beside:
        _require_numbers(name, made[name], columns, scored[:2])
    both = {name: made[name]} | ({"vae": vae} if beside else {})
    # Scores of two rows, before the long fits.
    rehearsal: dict[str, Any] = {"method": "importance", "num_samples": 2, "check": False}
    comparison.compare(both, scored[:2], training_rows=True, **rehearsal)


@app.command()
def check(
    model: Model,
    data: Data,
    method: Annotated[str, typer.Option(help="One of the methods of score, but exact.")] = "auto",
    num_rows: Annotated[int, typer.Option(min=8, help="Trusted rows that are wanted.")] = 64,
    seed: Seed = 0,
    index: Index = None,
) -> None:
    """Try a method on rows simulated from the model and count those that it trusts and yet misses."""
    pair, table = load(model)
    rows = files.Rows(data, index, table).whole()
    show(evidence.check(pair, rows, method=method, num_rows=num_rows, seed=seed))


@app.command()
def report(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file to write.")],
    train: Annotated[
        str | None, typer.Option(help="Rows to fit the two baselines to, in a file that has none of DATA's.")
    ] = None,
    color: Annotated[str | None, typer.Option(help="Column that colours the latent space.")] = None,
    method: Annotated[str, typer.Option(help="One of the methods of score, but exact.")] = "auto",
    num_rows: Annotated[int, typer.Option(min=2, help="The most rows that are scored.")] = 500,
    seed: Seed = 0,
    title: Annotated[str, typer.Option(help="Of the page.")] = "Report on a model of rows",
    index: Index = None,
) -> None:
    """Write one HTML file on a model and rows: log P(x), its checks, comparisons, figures and odd rows."""
    files.require_apart(out, model, data, train)
    pair, table = load(model)
    rows = files.Rows(data, index, table).whole()
    if color is not None and color not in rows:
        raise bad_value(
            "--color", f"a column of {data}, {list(rows.columns)}", repr(color), "Name one of these."
        )
    write_report(
        pair,
        rows,
        out,
        train=None if train is None else files.Rows(train, index, table).whole(),
        color=None if color is None else rows[color],
        method=method,
        num_rows=num_rows,
        seed=seed,
        title=title,
        command=shlex.join(["pyrovae", *sys.argv[1:]]),
        progress=shows_progress(),
    )
    log.info("Report: %s", out)


@app.command()
def info(model: Model) -> None:
    """Print what a model is: its columns and families, its fit, and the versions that wrote it."""
    found, table = load(model)
    versions = storage.read(model)[1]["versions"]
    fitted = getattr(found, "fitted", None)
    if hasattr(found, "summary"):
        show(found.summary())
    else:
        show(f"{type(found).__name__} with {sum(each.numel() for each in found.parameters())} parameters")
    if table is not None:
        show(table.summary().to_string(index=False))
    if fitted is not None:
        show(f"fitted to {fitted.rows} row{'s' * (fitted.rows != 1)}: {training.History(**fitted.history)}")
    show(", ".join(f"{name} {version}" for name, version in versions.items()))


def _require_numbers(name: str, baseline: Any, table: Table, codes: Any) -> None:
    """Raise ``ValueError`` if a baseline gives densities of codes, which are no numbers in the column's unit."""
    measure = baseline.log_evidence(codes).measure
    for column, kind in zip(table.columns, measure, strict=True):
        if kind == "density" and (column.levels is not None or column.resolution not in (None, 1)):
            came = f"{column.name!r}, " + (
                "a column of labels"
                if column.levels is not None
                else f"counted in steps of {column.resolution:g}"
            )
            option = shlex.quote(column.name)
            fix = f"Leave it out by --drop {option}"
            if column.levels is None:
                fix += f", or take it as a real number by --family {option}=gaussian"
            raise bad_value(f"--models {name}", "columns of real numbers", came, f"{fix}.")


@contextmanager
def _named(name: str, columns: Sequence[Any]) -> Iterator[None]:
    """Turn what a baseline refuses into a refusal of --models, which chose it, with the names of ``columns``."""
    try:
        yield
    except Refused as error:
        said = error.argument if error.argument in ("x", "latent_dim", "num_components") else ""
        message = str(error).removeprefix(f"{said}: ")
        message = re.sub(r"(?<=column )\d+", lambda number: repr(columns[int(number[0])]), message)
        named = Refused(f"--models {name}: {message}")
        named.argument = f"--models {name}"
        raise named from error


def _made(text: str, latent_dim: int, columns: int, vae: Callable[[int], VAE]) -> Any:
    """Return a model of a name, or of name:number; ``vae`` returns a VAE with so many entries of z."""
    name, _, given = text.strip().partition(":")
    number = arguments.integer("--models", to_number("--models", given, int)) if given else None
    if name == "vae":
        return vae(latent_dim if number is None else number)
    name = "gaussian_mixture" if name == "mixture" else name
    known = sorted(name for name, kind in baselines.REGISTRY.items() if issubclass(kind, baselines.Baseline))
    kind: Any = baselines.REGISTRY[arguments.choice("--models", name, ("vae", "mixture", *known))]
    sizes = [each for each in inspect.signature(kind).parameters.values() if each.default is each.empty]
    if not sizes:
        if given:
            raise bad_value("--models", f"{name} without a number", repr(text), "Leave the number out.")
        return kind()
    default = min(latent_dim, max(1, columns - 1)) if sizes[0].name == "latent_dim" else _COMPONENTS
    return kind(default if number is None else number)
