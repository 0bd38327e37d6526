"""behaviour() returns a pair's log-probabilities on a few rows, by which checkpoints recognise a model and a guide.

The source code does not determine what a pair computes: closures, globals, ``functools.partial`` and attributes can
change it without a change of code. The numbers that the pair returns then change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from pyrovae import noise
from pyrovae.model import LatentVariableModel
from pyrovae.pair.row_model import LogJoint, RowModel
from pyrovae.pair.running import Batch, Structure, flat, take
from pyrovae.python_values import values_of_call

# Parts of the pair that the three terms belong to.
_TERMS = ("the guide's log Q(z | x)", "the model's log P(z)", "the model's log P(x | z)")
_DRAWS = 2  # of z for each row, from each source
# Rows: as many as make the work of about one tile, between these limits.
_NUMBERS, _FEWEST_ROWS, _MOST_ROWS = 1 << 20, 8, 1024
# Numbers and columns that are searched for extreme and rare entries; most values of a column that each get a row.
_POOL_NUMBERS, _POOL_COLUMNS, _VALUES = 1 << 21, 32, 64


def behaviour(model: RowModel, batch: Batch, seed: int) -> dict[str, Tensor]:
    """Return log Q(z | x), log P(z) and log P(x | z) by name, each of shape (draws, rows), float64, in nats.

    z is drawn from the guide and then from the prior, because a model may differ where its guide never draws. The
    pair runs in ``eval()`` mode and without validation. Numbers are NaN if the model raises an error at draws of
    its prior. The pair, its parameter store and torch's generators are left unchanged.
    """
    found = {}
    key, device = noise.derive(seed, noise.Stream.IDENTITY), batch["x"].device
    with left_as_found(model.pair), model.pair.evaluating(), pyro.validation_enabled(False):
        for source, ask in (("the guide", _of_guide), ("the prior", _of_prior)):
            terms = torch.full((3, _DRAWS, len(batch["x"])), torch.nan, dtype=torch.float64)
            try:
                with noise.seeded(key, device):
                    log_q, joint = ask(model, batch)
                terms = torch.stack([log_q, joint.prior, joint.likelihood]).cpu()
            except Exception:  # the prior may draw values that the pair's own networks cannot take
                if source == "the guide":
                    raise
            for name, term in zip(_TERMS, terms, strict=True):
                found[f"{name}, z from {source},"] = term
    return found


def probe(structure: Structure, batch: Batch, most: int | None = None) -> Batch:
    """Return rows to recognise a pair by: all if they are few, else random rows and rows with extreme or rare entries.

    Entries are those of x and of all values beside it, because a model may differ at one value of a label only.
    """
    x = batch["x"]
    most = min(most or _MOST_ROWS, max(_FEWEST_ROWS, _NUMBERS // (2 * _DRAWS * max(structure.widest, 32))))
    if len(x) <= most:
        return take(batch, slice(None))
    generator = torch.Generator().manual_seed(0)
    chosen = [_telling(x, most // 2, generator)]
    chosen.append(torch.randint(len(x), (most - len(chosen[0]),), generator=generator))
    for name, value in batch.items():
        if name != "x" and value.numel():
            chosen.append(_telling(value, min(_VALUES, 4 * most), generator))
    rows = torch.cat(chosen).unique().to(x.device)
    return take(batch, rows)


def _telling(value: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Return up to ``most`` rows: with the extremes of each column, and with each value of a column that has few.

    Whole numbers and booleans get a row for each value, however many there are. Rows with rare values come first.
    """
    table = flat(value)
    columns = torch.linspace(0, table.shape[1] - 1, min(_POOL_COLUMNS, most // 2 + 1)).long().unique()
    height = _POOL_NUMBERS // len(columns)
    pool = torch.arange(len(table))
    if len(table) > height:
        pool = torch.randint(len(table), (height,), generator=generator)
    values = table[pool[:, None].to(table.device), columns.to(table.device)].cpu().numpy()
    # numpy takes the first of equal ones on every machine.
    found = [values.argmin(axis=0), values.argmax(axis=0)]
    counts = [np.zeros(2 * len(columns), dtype=np.int64)]
    for column in values.T:
        real = value.is_floating_point()
        if real and len(np.unique(column[:1000])) > _VALUES:
            continue
        different, first, count = np.unique(column, return_index=True, return_counts=True)
        if len(different) <= _VALUES or not real:
            found.append(first)
            counts.append(count)
    by_count = np.concatenate(found)[np.concatenate(counts).argsort(kind="stable")]
    return pool[list(dict.fromkeys(by_count.tolist()))[:most]]


def parameters_digest(pair: LatentVariableModel) -> str:
    """Return a sha256 of every parameter and buffer, including modules that plain functions refer to."""
    digest = hashlib.sha256()
    for module in pair.every_module():
        held: Iterable[tuple[str, Tensor | None]] = [*module._parameters.items(), *module._buffers.items()]
        for name, tensor in held:
            if tensor is not None:
                digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def left_as_found(pair: LatentVariableModel, objective: object = None) -> Iterator[None]:
    """Run a block, then restore what pair and objective hold in parameters, buffers, the parameter store and Python."""
    values = values_of_call(pair, objective)
    stored: dict[str, Any] = dict(pair.stored)
    try:
        yield
    finally:
        values.restore()
        pair.stored.update(stored)


@contextmanager
def left_as_first_called(pair: LatentVariableModel) -> Iterator[Callable[[], None]]:
    """Run a block that calls a pair, perhaps for the first time, and then leave the pair as found, with new parameters.

    The block gets a function to call after the pair's first call. If that call gave parameters to modules, as lazy modules
    do, the pair is left as it was after the call. Parameters that plain functions declare stay in any case.
    """
    values, known = values_of_call(pair), _known(pair)

    def after_first_call() -> None:
        nonlocal values
        if _known(pair) - known:
            values = values_of_call(pair)

    try:
        yield after_first_call
    finally:
        stored, constraints = dict(pair.stored), dict(pair.constraints)
        values.restore()
        for name, value in stored.items():
            if name not in pair.stored:
                pair.stored[name], pair.constraints[name] = value, constraints[name]
        pair.register_declared()


def _known(pair: LatentVariableModel) -> set[int]:
    """Return the ids of the modules' parameters. Lazy ones without a shape and those of plain functions are left out."""
    modules = (module for module in pair.every_module() if module is not pair.declared)
    return {id(p) for m in modules for p in m._parameters.values() if p is not None and not is_lazy(p)}


def _of_guide(model: RowModel, batch: Batch) -> tuple[Tensor, LogJoint]:
    latents, log_q = model.propose(batch, _DRAWS)
    return log_q, model.log_joint(batch, latents)


def _of_prior(model: RowModel, batch: Batch) -> tuple[Tensor, LogJoint]:
    latents, joint = model.draw_prior(batch, _DRAWS)
    return model.log_proposal(batch, latents), joint
