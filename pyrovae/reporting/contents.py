"""What a report is about: the model, the rows that are scored, and what several of its sections need."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyrovae import arguments, frames, identity, noise
from pyrovae.evaluation import Evaluation, Simulated
from pyrovae.evidence import METHODS
from pyrovae.evidence.simulated import simulated
from pyrovae.model import VAE, LatentVariableModel
from pyrovae.refusals import bad_value
from pyrovae.rows import as_passed, joined, leaving_cells, restored, row_labels

if TYPE_CHECKING:
    import pandas as pd

_SIMULATED = 300  # rows
_BY_CHANCE = 1e-3  # probability of matches of two sets of rows that is no reason to refuse them


class Contents:
    """The model, the rows that are scored and their log P(x); the arguments are those of ``report``."""

    def __init__(
        self,
        model: LatentVariableModel,
        x: Any,
        train: Any,
        color: Any,
        image_shape: Any,
        method: str,
        num_rows: int,
        seed: int,
        progress: bool,
    ) -> None:
        """Check the rows, draw those that are scored, and score them."""
        x = joined(x, "x")
        whole = Evaluation.prepare(model, x, 1, seed)
        x, self.total = model.arranged(x), len(whole)
        self.model, self.method, self.seed, self.image_shape = model, method, seed, image_shape
        if image_shape is not None:
            _check_image_shape(image_shape, whole.batch["x"][0].numel())
        if train is not None:
            train = joined(train, "train")
            _check_apart(whole, Evaluation.prepare(model, train, 1, seed, argument="train"))
        order = noise.shuffled(self.total, seed).numpy()
        chosen, few = np.sort(order[:num_rows]), order[: min(num_rows, max(self.total // 2, 1))]
        self.color = None if color is None else _series(color, as_passed(x)[1]).iloc[chosen]
        self.x = some(x, chosen)
        #: The rows that baselines are fitted to, whose rows these are, and which rows are compared.
        self.train, self.whose, self.compared = train, "rows of train", np.ones(len(chosen), dtype=bool)
        if train is None:
            few = leaving_cells(few, whole.batch.get("observed"))
            rest = some(x, np.sort(np.setdiff1d(order, few)))
            self.train, self.whose, self.compared = rest, "other rows of x", np.isin(chosen, few)
        self.evaluation = Evaluation.prepare(model, self.x, 1, seed)
        self.evidence = METHODS[method](model, self.x, seed=seed, progress=progress)
        drawn = f", drawn from {self.total}" if self.total > len(chosen) else ""
        self.about = f"{type(model).__name__}, {len(chosen)} rows{drawn}, {len(self.names)} columns"
        low, high = self.evidence.mean_interval
        trusted = f"{self.evidence.counts()['trust']} of {len(chosen)}"
        #: Names, values and notes of the most important numbers.
        self.tiles = [
            ("log P(x), nats a row", f"{self.evidence.mean:.3f}", f"95 % interval {low:.3f} to {high:.3f}"),
            ("rows trusted", trusted, f"by method {method!r}"),
            ("check of the method", self.evidence.checked, "on rows simulated from the model"),
        ]

    def drawn(self, total: int, number: int) -> np.ndarray:
        """Return the numbers of at most ``number`` of ``total`` rows, drawn by the seed, in order."""
        return np.sort(noise.shuffled(total, self.seed)[:number].numpy())

    @cached_property
    def simulated(self) -> Simulated:
        """Rows simulated from the model, given what was beside the rows."""
        count = min(len(self.evaluation), _SIMULATED)
        return simulated(self.evaluation, torch.arange(count, device=self.evaluation.batch["x"].device))

    @property
    def missing(self) -> bool:
        return "observed" in self.evaluation.batch

    @cached_property
    def names(self) -> list[Any]:
        """The names or numbers of the columns of the flattened rows."""
        held = frames.names(as_passed(self.x)[1])
        return list(held) if held else list(range(self.evaluation.batch["x"][0].numel()))

    def frame(self, values: Tensor) -> pd.DataFrame:
        """Return rows of the model as a frame in the units of the data; a missing cell is NaN, None or NA."""
        import pandas as pd

        table = self.model.table if isinstance(self.model, VAE) else None
        flat = values.detach().reshape(len(values), -1).double().cpu()
        if table is None:
            return pd.DataFrame(flat.numpy(), columns=self.names)
        found = table.decode(flat).infer_objects()  # columns of objects may hold numbers
        return found.set_axis(frames.own_labels(found.columns), axis=1)

    @property
    def data(self) -> pd.DataFrame:
        """The rows as a frame, with the index of x."""
        batch = self.evaluation.batch
        found = self.frame(restored(batch["x"], batch.get("observed")))
        return found if self.evidence.index is None else found.set_axis(self.evidence.index, axis=0)

    @property
    def method_of_draws(self) -> str:
        """The method, if it draws z for single rows, else "auto"."""
        return self.method if self.method in ("importance", "refined") else "auto"


def some(x: Any, numbers: np.ndarray) -> Any:
    """Return some of the rows, with what goes with them."""

    def part(value: Any) -> Any:
        if hasattr(value, "iloc"):
            return value.iloc[numbers]
        return value[torch.from_numpy(numbers).to(value.device) if isinstance(value, Tensor) else numbers]

    beside, rows = as_passed(x)
    return (
        {"x": part(rows), **{name: part(value) for name, value in beside.items()}} if beside else part(rows)
    )


def _series(color: Any, rows: Any) -> pd.Series:
    """Return a label or a number for each row, in the order of the rows."""
    values = row_labels("color", color, frames.index(rows), rows.shape[0])
    return values.rename(getattr(color, "name", None))


def _check_apart(x: Evaluation, train: Evaluation) -> None:
    """Raise ``ValueError`` if rows to fit baselines to are among those to score, beyond what chance explains."""
    sources = [each.source for each in (x, train) if each.source is not None]
    hashes = [identity.row_hashes(source.exact, source.observed) for source in sources]
    found = identity.seen(*hashes)
    if found.number and found.by_chance < _BY_CHANCE:
        came = f"{found.number} of the {len(hashes[0])} rows of x, first row {int(found.matches.argmax())}"
        raise bad_value("train", "rows that are not in x", came, "Pass other rows, or leave train out.")


def _check_image_shape(shape: Any, pixels: int) -> None:
    height, width = arguments.image_shape("image_shape", shape)
    if pixels != height * width:
        came = f"{height} × {width}"
        raise bad_value("image_shape", f"the shape of rows of {pixels} pixels", came, "Pass (height, width).")
