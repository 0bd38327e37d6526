"""Commands about rows: score, impute, embed, outliers, sample."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer

from pyrovae import arguments, checkpoints, embedding, evidence, imputation, outlying
from pyrovae.cli import files
from pyrovae.cli.main import Check, Data, Index, Model, Out, Seed, app, load, log, shows_progress
from pyrovae.evidence.check import once
from pyrovae.refusals import Refused

# Rows of one call of log_evidence.
_AT_ONCE = 10_000

Method = Annotated[str, typer.Option(help=f"Whose draws of z to use: {', '.join(imputation.METHODS)}.")]
NumSamples = Annotated[int, typer.Option(min=100, help="Draws of z a row.")]


@app.command()
def score(
    model: Model,
    data: Data,
    out: Out = "-",
    method: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(evidence.METHODS)}. The default is auto; baselines compute log P(x) themselves."
        ),
    ] = None,
    num_samples: Annotated[
        int | None, typer.Option(min=1, help="Draws a row, for methods that take them.")
    ] = None,
    target_mcse: Annotated[
        float | None, typer.Option(help="Error to reach, in nats a row, for auto.")
    ] = None,
    seed: Seed = 0,
    check: Check = True,
    index: Index = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Folder of these scores. The same command resumes after the last finished rows."),
    ] = None,
) -> None:
    """Write log P(x) of every row with its error and a verdict, 10 000 rows at a time.

    Each 10 000 rows are one call of log_evidence with noise="content": equal rows get equal draws wherever they are. The
    method is tried on rows simulated from the model once, with the first 10 000 rows that have a row to trust.
    """
    files.require_apart(out, model, data)
    found, table = load(model)
    options: dict[str, Any] = {"num_samples": num_samples, "target_mcse": target_mcse}
    options = {name: value for name, value in options.items() if value is not None}
    if not hasattr(found, "log_evidence"):
        method = method or "auto"
        options |= {} if method == "exact" else {"seed": seed, "check": check, "noise": "content"}
    rows, kept = files.Rows(data, index, table), None
    if checkpoint is not None:
        given = f"{method} {sorted(options.items())} index {index}"
        pins = {"model": files.digest(model), "rows": rows.digest, "options": given}
        kept = checkpoints.Parts(checkpoint, pins, {}, torch.get_num_threads())
    options |= {"progress": shows_progress()} if "seed" in options else {}
    with files.writing(out) as put, once() as made:
        for number, (start, frame) in enumerate(rows.chunks(_AT_ONCE)):
            if rows.count > len(frame):
                log.info("Rows %d to %d of %d", start, start + len(frame) - 1, rows.count)
            compute = functools.partial(_scored, found, frame, start, method, options, made)
            part = compute() if kept is None else kept.keep(number, compute)
            made.update({fields["method"]: evidence.Check(**fields) for fields in part["checks"]})
            modelled = frame.shape[1] if table is None else len(table.columns)
            columns = part["scores"] | {
                "observed": part["scores"].get("observed", modelled)
            }  # if there is no hole
            scores = pd.DataFrame(columns, index=frame.index)
            put(scores.rename_axis(_label(frame)))
            log.info("%s", part["summary"])


def _label(frame: pd.DataFrame) -> Any:
    """Return the name of the labels of rows of a file; "row", or one that no column has, if they have none."""
    return frame.index.name or files.unused("row", frame.columns)


def _scored(
    model: Any,
    frame: pd.DataFrame,
    start: int,
    method: str | None,
    options: dict[str, Any],
    made: dict[str, evidence.Check],
) -> dict[str, Any]:
    """Return log P(x) of some rows of a file as plain data, which checkpoints keep.

    ``start`` is the first row, and ``made`` the checks so far.
    """
    with _numbered_from(start):
        found = evidence.log_evidence(model, frame, method=method, **options)
    summary = found.summary()
    if found.seen:
        summary += f"\nnot held out: {found.seen} of these rows, which the model was fitted to"
    checks = [vars(check) for check in made.values()]
    return {"scores": found.to_frame().to_dict("list"), "summary": summary, "checks": checks}


@contextmanager
def _numbered_from(start: int) -> Iterator[None]:
    """Add to a refusal which row of the file the numbers in it are counted from."""
    try:
        yield
    except Refused as error:
        if start:
            error.args = (f"{error} Row 0 here is row {start} of the file.",)
        raise


@app.command()
def impute(
    model: Model,
    data: Data,
    out: Out = "-",
    kind: Annotated[
        str,
        typer.Option(
            help="median, mean or mode: one completed table. draws: a completed table for each imputation, one below the "
            "other. cells: a line for each missing cell, with an interval and a verdict."
        ),
    ] = "median",
    num_imputations: Annotated[int, typer.Option(min=1, help="Draws of each missing cell.")] = 20,
    method: Method = "auto",
    num_samples: NumSamples = 2000,
    seed: Seed = 0,
    check: Check = True,
    index: Index = None,
) -> None:
    """Complete the missing cells of rows by draws from P(missing cells | observed cells)."""
    arguments.choice("--kind", kind, ("median", "mean", "mode", "draws", "cells"))
    files.require_apart(out, model, data)
    found, table = load(model)
    rows = files.Rows(data, index, table).whole()
    with files.writing(out, labels=kind in ("draws", "cells")) as put:
        done = imputation.impute(
            found,
            rows,
            num_imputations,
            method=method,
            num_samples=num_samples,
            seed=seed,
            check=check,
            progress=shows_progress(),
        )
        if kind == "cells":
            put(done.to_frame().set_index("row").rename_axis(_label(rows)))
        elif kind == "draws":
            label = _label(rows)
            names = [files.unused("imputation", [label, *rows.columns]), label]
            put(pd.concat(dict(enumerate(done.completed)), names=names))
        else:
            put(done.point(kind))
        log.info("%s", done)


@app.command()
def embed(
    model: Model,
    data: Data,
    out: Out = "-",
    method: Annotated[
        str, typer.Option(help=f"Whose mean and standard deviation: {', '.join(embedding.METHODS)}.")
    ] = "encoder",
    num_samples: NumSamples = 1000,
    seed: Seed = 0,
    check: Check = True,
    index: Index = None,
) -> None:
    """Write the mean and standard deviation of every latent of every row, by default the encoder's."""
    files.require_apart(out, model, data)
    found, table = load(model)
    options: dict[str, Any] = {"method": method, "num_samples": num_samples, "seed": seed, "check": check}
    options |= {"progress": shows_progress()}
    with files.writing(out) as put, once():
        for start, frame in files.Rows(data, index, table).chunks(_AT_ONCE):
            with _numbered_from(start):
                codes = embedding.embed(found, frame, noise="content", **options)
            put(codes.rename_axis(_label(frame)))


@app.command()
def outliers(
    model: Model,
    data: Data,
    out: Out = "-",
    cells: Annotated[bool, typer.Option("--cells", help="A line for each observed cell.")] = False,
    top: Annotated[int | None, typer.Option(min=1, help="Only so many rows, the oddest first.")] = None,
    method: Method = "auto",
    num_samples: NumSamples = 2000,
    seed: Seed = 0,
    check: Check = True,
    index: Index = None,
) -> None:
    """Write how odd each row is, and its oddest cell given the others."""
    files.require_apart(out, model, data)
    found, table = load(model)
    rows = files.Rows(data, index, table).whole()
    with files.writing(out) as put:
        odd = outlying.outliers(
            found,
            rows,
            cells=cells,
            method=method,
            num_samples=num_samples,
            seed=seed,
            check=check,
            progress=shows_progress(),
        )
        by = "below" if cells else "score"
        odd = odd.rename_axis(_label(rows))
        put(odd if top is None else odd.sort_values(by, ascending=False)[:top])


@app.command()
def sample(
    model: Model,
    num_rows: Annotated[int, typer.Argument(min=1, help="How many rows.")],
    out: Out = "-",
    seed: Seed = 0,
) -> None:
    """Write rows drawn from P(x)."""
    files.require_apart(out, model)
    found, table = load(model)
    with files.writing(out, labels=False) as put:
        drawn = found.sample(num_rows, seed=seed)
        if table is None:
            fitted = getattr(found, "fitted", found)
            names = (getattr(fitted, "names", None) or {}).get("x")
            drawn = pd.DataFrame(drawn.flatten(1).numpy(), columns=names).rename(
                columns=lambda name: f"x{name}" if names is None else name
            )
        put(drawn)
