"""Evaluation: a pair with checked rows, evaluated over tiles of rows × samples; Terms: a tile's log weights in three terms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae import arguments, identity, threads
from pyrovae import noise as noises
from pyrovae.arrays import cast
from pyrovae.model import VAE, LatentVariableModel
from pyrovae.networks import check_width
from pyrovae.pair import Batch, Latents, RowModel, Structure, check_supports, inspect
from pyrovae.refusals import Refused, bad_type, bad_value, parameters_hold
from pyrovae.row_noise import RowNoise
from pyrovae.rows import Source, joined
from pyrovae.sparse import chosen
from pyrovae.tracing import Call, Runner, tile_terms, why_not_compiled

#: The keys that a row's noise may have.
KEYS = ("index", "content")

#: Names of columns, by the name that a frame has in a batch.
Names = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Terms:
    """The three terms of a block of log weights, each of shape (samples, rows), float64, in nats.

    A draw that rounding put onto a bound of its support has log Q(z | x) = +∞ and weighs nothing.
    """

    likelihood: Tensor
    prior: Tensor
    proposal: Tensor

    @cached_property
    def log_weights(self) -> Tensor:
        weights = self.likelihood + self.prior - self.proposal
        return torch.where(self.lost, -math.inf, weights)

    @cached_property
    def lost(self) -> Tensor:
        """Which draws rounding put onto a bound of their support, (samples, rows)."""
        return self.proposal == math.inf

    def without(self, draws: Tensor) -> Terms:
        """Return the same terms with some draws, (samples, rows), given weight zero."""
        return (
            replace(self, proposal=torch.where(draws, math.inf, self.proposal)) if bool(draws.any()) else self
        )

    @classmethod
    def cat(cls, parts: Sequence[Terms]) -> Terms:
        """Return the terms of several tiles of one block of rows together."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def checked(self, numbers: Tensor, fix: Callable[[], str] | None = None) -> Terms:
        """Return itself if every log weight is below +∞; ``numbers`` are its rows' numbers in x, shape (rows,).

        ``fix`` returns a text on how to fix the columns, as ``LatentVariableModel.fix_of_scales`` does.

        Raises:
            ValueError: a log weight is NaN or +∞; names the term, the first row and the count.
        """
        if not bool((self.log_weights < math.inf).all()):  # NaN compares false
            raise _not_a_number(self, numbers, fix() if fix else "")
        return self


@dataclass(frozen=True)
class Simulated:
    """Rows simulated from a model, with the latents that each was simulated with.

    It takes the place of x in estimators.

    Attributes:
        model: the model and guide, and the results of inspection.
        batch: the rows, under "x", and the values aligned with them.
        exact: the latents, each (1, rows, rest...): exact draws of the rows' posteriors.
    """

    model: RowModel
    batch: Batch
    exact: Latents
    #: The same rows without missing cells.
    complete: Tensor

    def only(self, rows: Tensor) -> Simulated:
        """Return some of the rows."""
        batch = {name: value[rows] for name, value in self.batch.items()}
        exact = {name: z[:, rows] for name, z in self.exact.items()}
        return Simulated(self.model, batch, exact, self.complete[rows])

    def draw(self, rows: slice) -> Latents:
        """Return the latents of some rows as one sample, in the layout of ``RowModel``."""
        return {name: self.model.rows_back(name, z[:, rows]) for name, z in self.exact.items()}

    @classmethod
    def cat(cls, parts: Sequence[Simulated]) -> Simulated:
        """Return the rows of several parts together."""
        first = parts[0]
        batch = {name: torch.cat([part.batch[name] for part in parts]) for name in first.batch}
        exact = {name: torch.cat([part.exact[name] for part in parts], dim=1) for name in first.exact}
        return cls(first.model, batch, exact, torch.cat([part.complete for part in parts]))


@dataclass(frozen=True)
class Evaluation:
    """A pair with checked rows, ready to be evaluated tile by tile.

    Attributes:
        model: the model and guide, and the results of inspection.
        batch: the rows, under "x", and the values aligned with them.
        numbers: the rows' numbers in the x that was passed; shape (rows,).
        keys: the key of each row's noise, shape (rows,), int64.
        keyed_by: "index" or "content" of the rows; "tile" if the pair draws noise that cannot be keyed by rows.
        num_samples: K, draws per row.
        seed: the seed of all noise.
        tile: (rows, samples) of a tile.
        runner: runs tiles as graphs; None if they are never run so.
        source: the rows as the user passed them; None for a subset of another evaluation's rows.
        times: how often its tiles will be computed, which decides whether graphs are worth it.
        threads: how many of torch's threads compute its tiles.
        argument: the name of its rows in errors.
        simulated: its rows with the latents that each was simulated with; None for rows of the user. Only the step that
            weighs the answer's own draws may read these latents.
        out_of: how many rows there are in all, if these are the rows of one task; None if they are all.
    """

    model: RowModel
    batch: Batch
    numbers: Tensor
    keys: Tensor
    keyed_by: str
    num_samples: int
    seed: int
    tile: tuple[int, int]
    runner: Runner | None = None
    times: int = 1
    threads: int = 1
    argument: str = "x"
    source: Source | None = None
    simulated: Simulated | None = None
    out_of: int | None = None

    @classmethod
    def prepare(
        cls,
        pair: LatentVariableModel,
        x: Any,
        num_samples: int,
        seed: int,
        tile: tuple[int, int] | None = None,
        model: RowModel | None = None,
        argument: str = "x",
        compile: str | bool = False,
        times: int = 1,
        names: Names | None = None,
        noise: str = "index",
    ) -> Evaluation:
        """Check the arguments and the pair and return an evaluation of the rows; ``names`` as in ``read_rows``."""
        arguments.compile(compile)
        arguments.choice("noise", noise, KEYS)
        arguments.integer("num_samples", num_samples)
        arguments.integer("seed", seed, minimum=0)
        tile = None if tile is None else arguments.tile(tile)
        simulated = x if isinstance(x, Simulated) else None
        if simulated is not None:
            model, batch = simulated.model, simulated.batch
            source = Source(batch["x"], {}, None, batch.get("observed"))
        else:
            model, batch, source = _read(pair, x, argument, names, seed, model)
        if tile is None:
            tile = noises.tile_shape(model.structure.widest, num_samples)
        numbers = torch.arange(len(batch["x"]), device=batch["x"].device)
        main = (min(tile[0], len(numbers)), min(tile[1], num_samples))
        runner = Runner(model, compile, main) if compile else None
        keys = numbers
        if noise == "content" and model.keyed:
            hashes = identity.row_hashes(source.exact, source.observed)[:, 0]
            keys = torch.from_numpy(hashes.view(np.int64)).to(numbers.device)
        keyed_by = noise if model.keyed else "tile"
        return cls(
            model,
            batch,
            numbers,
            keys,
            keyed_by,
            num_samples,
            seed,
            tile,
            runner,
            times,
            threads.fitting(model.structure.work * math.prod(main)),
            argument,
            source,
            simulated,
        )

    @property
    def pair(self) -> LatentVariableModel:
        return self.model.pair

    @property
    def repeats(self) -> bool:
        """Whether rows share their noise, because they have equal content."""
        return self.keyed_by == "content" and len(self.keys.unique()) < len(self.keys)

    @property
    def structure(self) -> Structure:
        return self.model.structure

    @property
    def index(self) -> Any:
        """The index of a frame or a series that was passed; else None."""
        return None if self.source is None else self.source.index

    def __len__(self) -> int:
        return len(self.batch["x"])

    def tiles(self) -> Iterator[list[noises.Tile]]:
        """Yield the tiles of every block of rows."""
        return noises.tiles(len(self), self.num_samples, self.tile)

    @property
    def compiles(self) -> str | bool:
        """``compile`` as requested, or False if this machine cannot; compiling changes the last digits of numbers."""
        if self.runner is None or why_not_compiled(self.batch["x"].device) is not None:
            return False
        return self.runner.compile

    def blocks(self, num_samples: int | None = None) -> list[slice]:
        """Return the blocks of rows of the tiles, or of tiles that have another number of samples."""
        if num_samples is None:
            return [block[0].rows for block in self.tiles()]
        tile = noises.tile_shape(self.structure.widest, num_samples)
        return [block[0].rows for block in noises.tiles(len(self), num_samples, tile)]

    def part(self, rows: slice | Tensor) -> Batch:
        """Return a copy of some of the rows, with what goes with them.

        A copy, because the last bits of products depend on where in memory the rows begin.
        """
        return {
            name: value[rows].clone() if isinstance(rows, slice) else value[rows]
            for name, value in self.batch.items()
        }

    def of_rows(self, rows: Tensor, seed: int, num_samples: int) -> Evaluation:
        """Return the evaluation of some of the rows, with noise of its own and tiles of the same shape."""
        numbers = self.numbers[rows]
        return replace(
            self,
            batch={name: chosen(value, rows) for name, value in self.batch.items()},
            numbers=numbers,
            keys=self.keys[rows],
            seed=seed,
            num_samples=num_samples,
            source=None,
            simulated=None if self.simulated is None else self.simulated.only(rows),
            out_of=None,
        )

    def exact_draw(self, rows: slice) -> Latents | None:
        """Return the latents that some rows were simulated with, as one sample; None for rows of the user."""
        return None if self.simulated is None else self.simulated.draw(rows)

    def noise(self, stream: noises.Stream, *keys: int, rows: slice = slice(None), first: int = 0) -> RowNoise:
        """Return the noise of some rows for one purpose, from sample number ``first`` on."""
        return RowNoise(noises.derive(self.seed, stream, *keys), self.keys[rows], first)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of log-probabilities: that of the parameters, or of the rows if the pair has none."""
        return self.pair.dtype or self.batch["x"].dtype

    def terms(self, tile: noises.Tile) -> Terms:
        """Draw z for the rows of one tile and return its log weights' terms.

        Raises:
            ValueError: a log weight is NaN or +∞; names the term, the first row and the count.
        """
        columns = list(self.part(tile.rows).values())
        noise = self.noise(noises.Stream.TILE, rows=tile.rows, first=tile.samples.start)
        shape = (tile.rows.stop - tile.rows.start, tile.num_samples)
        call = Call(
            ("tile", tile.num_samples, *self.batch),
            tile_terms(self.model, list(self.batch), tile.num_samples),
            [*columns, noise.keys, noise.first],
            self._numbers_ahead(*shape),
            required=self.runner is not None and shape == self.runner.main,
            seed=noise.seed,
        )

        def fix() -> str:
            return self.pair.fix_of_rows(self.batch["x"], self.numbers)

        with parameters_hold(self.argument, fix):
            terms = call.by_pyro(self.pair) if self.runner is None else self.runner.run(call)
        return Terms(*terms).checked(self.numbers[tile.rows], fix)

    def weighed(self, tile: noises.Tile) -> tuple[Latents, Terms]:
        """Return the draws of ``terms`` beside the same terms; it runs uncompiled."""
        noise, batch = (
            self.noise(noises.Stream.TILE, rows=tile.rows, first=tile.samples.start),
            self.part(tile.rows),
        )
        with self.pair.evaluating(), noises.seeded(noise.seed, batch["x"].device):
            latents, joint, log_q = self.model.weigh(batch, tile.num_samples, noise)
        return latents, Terms(joint.likelihood, joint.prior, log_q).checked(self.numbers[tile.rows])

    def rows_alike(self, num_rows: int) -> int:
        """Return how many rows lie in blocks of ``num_rows`` rows."""
        blocks, last = divmod(self.out_of or len(self), self.tile[0])
        return blocks * num_rows if num_rows == self.tile[0] else num_rows * (num_rows == last)

    def _numbers_ahead(self, num_rows: int, num_samples: int) -> int:
        """Return how many numbers the tiles of a shape hold, over the whole evaluation and all its repetitions."""
        tiles, last = divmod(self.num_samples, self.tile[1])
        samples = tiles * num_samples if num_samples == self.tile[1] else num_samples * (num_samples == last)
        return self.times * noises.numbers(self.structure.widest, self.rows_alike(num_rows), samples)


def read_rows(
    pair: LatentVariableModel, x: Any, argument: str = "x", names: Names | None = None
) -> tuple[Batch, Source]:
    """Return ``x`` as a checked batch in the pair's dtype and on its device, and the rows as the user passed them.

    Columns are checked against the names that the pair was fitted to. Before a fit, ``names`` are checked instead
    if given.
    """
    if not isinstance(pair, LatentVariableModel):
        raise bad_type(
            "pair",
            "a VAE or a LatentVariableModel",
            f"a {type(pair).__name__}",
            "Wrap your Pyro model and guide: LatentVariableModel(model, guide).",
        )
    pair.check_numbers()
    batch, source = pair.checked(x, argument, names)
    if isinstance(pair, VAE):
        times = 2 if getattr(pair.encoder, "missing", False) else 1
        check_width(getattr(pair.encoder, "network", pair.encoder), batch["x"], argument, times)
    return batch, source


def _read(
    pair: LatentVariableModel, x: Any, argument: str, names: Names | None, seed: int, model: RowModel | None
) -> tuple[RowModel, Batch, Source]:
    """Return checked rows of the user, and the pair with what inspection finds with them; ``model`` if it is known."""
    x = joined(x, argument)  # which may be read again

    def again() -> tuple[Batch, Source]:
        return read_rows(pair, x, argument, names)

    batch, source = again()
    if model is None:
        (batch, source), model = inspect_rows(pair, (batch, source), again, seed, argument, every_row=True)
    else:
        check_supports(model.structure, batch, argument, source.names.get("x"))
    return model, batch, source


def inspect_rows(
    pair: LatentVariableModel,
    rows: tuple[Batch, Source],
    again: Callable[[], tuple[Batch, Source]],
    seed: int,
    argument: str = "x",
    every_row: bool = False,
) -> tuple[tuple[Batch, Source], RowModel]:
    """Return ``pair.inspect`` of some rows or of ``every_row``, and the rows.

    The rows are read ``again`` if the pair's dtype is known only after it has run.
    """
    known, (batch, source) = pair.dtype, rows
    with pair.nothing_declared_on_error():
        try:
            model = inspect(pair, batch, seed, argument, every_row, source.names.get("x"))
        except Refused as error:
            if known is None and "Double" in str(error):  # float64 rows met a pair that computes in float32
                cast(source.exact, torch.get_default_dtype(), argument, source.names.get("x"))
            raise
        return (rows if pair.dtype == known else again()), model


def _not_a_number(terms: Terms, numbers: Tensor, fix: str) -> Refused:
    log_weights = terms.log_weights
    bad = ~(log_weights < math.inf)
    row = int(numbers[bad.any(dim=0).int().argmax()])
    named = {"log P(x | z)": terms.likelihood, "log P(z)": terms.prior, "log Q(z | x)": terms.proposal}
    guilty = [name for name, term in named.items() if not bool(torch.isfinite(term).all())]
    return bad_value(
        "x",
        "log weights below +∞",
        f"{int(bad.sum())} that are NaN or +∞ in {' and '.join(guilty) or 'their difference'}, first at row {row}",
        f"{fix} ".lstrip()
        + "The model or the guide returns NaN, or a density that grows to +∞ (a vanishing scale): check "
        "its parameters, lower the learning rate, or fix the scale. A distribution of your own also gives NaN if it draws "
        "values off the support that it declares: correct its support.",
    )
