"""swap(): fits one VAE under each of several likelihoods and compares them on held-out rows."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyrovae import arguments, identity, noise, pages
from pyrovae.comparison.predictive import compare
from pyrovae.entries import most_dense
from pyrovae.evaluation import Names
from pyrovae.evidence import METHODS, LogEvidence, log_evidence
from pyrovae.evidence.workers import Pool, Workers, each
from pyrovae.likelihoods import REGISTRY, Likelihood
from pyrovae.model import VAE
from pyrovae.networks import standardizing
from pyrovae.pair import Batch, Structure, check_supports, inspect
from pyrovae.refusals import bad_type, bad_value, shown
from pyrovae.rows import read, restored
from pyrovae.sparse import SparseRows, chosen
from pyrovae.training import fit
from pyrovae.turns import takes_turns

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Swapped:
    """VAEs with different likelihoods, fitted to the same rows and scored on the same held-out rows.

    Attributes:
        models: the fitted VAEs by the family's name with its options.
        masses: ``compare`` of the VAEs whose P(x) is a mass, with ``bits_per_dim``; None if there are none.
        densities: the same for densities. Masses and densities have different units and no common scale.
        x_test: the held-out rows.
    """

    models: dict[str, VAE]
    masses: pd.DataFrame | None
    densities: pd.DataFrame | None
    x_test: Tensor

    def _repr_html_(self) -> str:
        grids = [
            pages.Grid.of(table.short(), f"{title}, nats a row", most=len(table))
            for title, table in (("masses", self.masses), ("densities", self.densities))
            if table is not None
        ]
        return pages.summary(f"log P(x) of {len(self.x_test)} held-out rows", [], *grids)

    def __str__(self) -> str:
        columns = ["elpd", "se", "elpd_diff", "dse", "mcse", "bits_per_dim", "kind", "check"]
        parts = [
            f"{title}, nats a row over {len(self.x_test)} rows\n{table[columns].round(3).to_string()}"
            for title, table in (("masses", self.masses), ("densities", self.densities))
            if table is not None
        ]
        return "\n\n".join(parts)


@takes_turns
def swap(
    x: Any,
    latent_dim: int,
    families: Sequence[str | tuple[str, Mapping[str, Any]]],
    *,
    x_test: Any = None,
    hidden_dims: Sequence[int] = (64, 64),
    method: str = "auto",
    seed: int = 0,
    progress: bool = False,
    executor: Workers = None,
    **fitting: Any,
) -> Swapped:
    """Fit one VAE a family to the same rows and compare their held-out log P(x).

    All VAEs have the same networks, apart from the number of outputs. They use ``standardize=True`` and start from
    the columns' marginals.

    Args:
        x: rows on dim 0; a tensor, numpy array or DataFrame, with NaN, None or NA in missing cells. With offsets, a dict as in ``fit``; families without
            ``offset=True`` get only the rows.
        latent_dim: entries of z.
        families: names in ``likelihoods.REGISTRY``, or pairs of a name and its options, such as
            ``("binomial", {"total_count": 16})``; ``likelihoods.suggest(x)`` names candidates.
        x_test: rows to score on. None holds out a fifth of ``x``, drawn by ``seed``.
        hidden_dims: of every VAE.
        method: of ``log_evidence``.
        seed: of weights, the split, and all noise.
        progress: show progress bars; those of fits in workers are not shown.
        executor: as in ``log_evidence``. One worker fits each family, and all workers score it, with the same bits as
            without. Changes that ``callbacks`` make in a worker stay there.
        fitting: options of ``fit``: ``epochs``, ``lr``, ``validation``, ``patience``, …

    Raises:
        TypeError, ValueError: a family or option is unknown; rows are off a family's support. More than half of the test
            rows are in ``x`` or, with ``patience``, in ``validation``. Raised before any fit.

    Example:
        >>> import torch
        >>> x = torch.poisson(torch.full((60, 3), 4.0), generator=torch.Generator().manual_seed(0))
        >>> found = swap(x, 1, ["poisson", "negative_binomial"], epochs=2, hidden_dims=(4,))
        >>> found.densities is None, len(found.masses)
        (True, 2)
    """
    batch, names = _read(x, "x")
    batch, test = _held_out(batch, seed) if x_test is None else (batch, _read(x_test, "x_test", names)[0])
    named = _named(families)
    arguments.choice("method", method, tuple(METHODS))
    arguments.boolean("progress", progress)
    arguments.options("swap and of fit", fit, fitting, taken=("pair", "x", "seed", "progress"))
    pool = None if executor is None else Pool(executor)
    validation = fitting.pop("validation", None)
    if validation is not None:
        validation, _ = _read(validation, "validation", names)
    if test["x"].shape[1:] != batch["x"].shape[1:]:
        raise bad_value(
            "x_test",
            f"rows of shape {tuple(batch['x'].shape[1:])}, as in x",
            f"shape {tuple(test['x'].shape[1:])}",
            "Pass the same columns.",
        )
    # With patience, validation rows choose the epoch, so models are fitted to them, too.
    chooses = validation is not None and fitting.get("patience") is not None
    _check_apart(test, [batch, validation] if chooses else [batch])
    models: dict[str, VAE] = {}
    kinds: dict[str, str] = {}
    for name, options in named:
        vae, label = _made(name, options, batch, latent_dim, hidden_dims, seed)
        scored = _scored(vae, name, _taken(vae, batch, names), seed)
        check_supports(scored, test, "x_test" if x_test is not None else "x")
        models[label], kinds[label] = vae, scored.measure[0]
    tasks = []
    for vae in models.values():
        own = {} if validation is None else {"validation": _taken(vae, validation, names)}
        options = {"seed": seed, "progress": progress and executor is None, **fitting, **own}
        tasks.append(functools.partial(_fitted, vae, _taken(vae, batch, names), options))
    fitted = [task() for task in tasks] if pool is None else each(tasks, pool)
    models = dict(zip(models, fitted, strict=True))
    scoring: dict[str, Any] = {"method": method, "seed": seed, "progress": progress}
    if executor is not None:
        scoring["executor"] = executor
    scores = {name: log_evidence(vae, _taken(vae, test, names), **scoring) for name, vae in models.items()}
    masses, densities = (
        _table({name: score for name, score in scores.items() if kinds[name] == kind})
        for kind in ("mass", "density")
    )
    return Swapped(models, masses, densities, test["x"])


def _made(
    family: str,
    options: Mapping[str, Any],
    batch: Batch,
    latent_dim: int,
    hidden_dims: Sequence[int],
    seed: int,
) -> tuple[VAE, str]:
    """Return a VAE with a family as its likelihood, and the label of the family and its options."""
    with noise.seeded(noise.derive(seed, noise.Stream.WEIGHTS)):
        vae = VAE.mlp(
            batch["x"][0].numel(),
            latent_dim,
            family,
            hidden_dims,
            standardize=True,
            missing="observed" in batch,
            **options,
        )
    label = ", ".join(f"{key}={value}" for key, value in options.items())
    return vae, f"{family}({label})" if label else family


def _table(scores: Mapping[str, LogEvidence]) -> pd.DataFrame | None:
    """Return ``compare`` of scores of one measure, with bits per dimension; None without scores."""
    if not scores:
        return None
    table = compare(scores)
    table.insert(1, "bits_per_dim", [scores[name].bits_per_dim for name in table.index])
    return table


def _fitted(vae: VAE, x: Any, options: Mapping[str, Any]) -> VAE:
    """Fit a VAE, which starts from the marginals of x, and return it."""
    if isinstance(vae.likelihood, Likelihood):
        # Training may start from the marginals of some rows.
        rows = x["x"]
        most = most_dense(SparseRows(rows, torch.float64)) if hasattr(rows, "tocsr") else len(rows)
        vae.likelihood.start_from({name: value[:most] for name, value in x.items()})
    fit(vae, x, **options)
    return vae


def _check_apart(test: Batch, fitted: Sequence[Batch]) -> None:
    """Raise ``ValueError`` if the models would be fitted to more than half of the test rows, as ``compare`` after the fits."""
    hashes, *others = (identity.row_hashes(each["x"], each.get("observed")) for each in (test, *fitted))
    number = identity.seen(hashes, np.concatenate(others)).number
    if number > len(hashes) / 2:
        raise bad_value(
            "x_test",
            "rows that the models are not fitted to",
            f"{number} of {len(hashes)} that are in x or, with patience, in validation",
            "Pass other rows. Without x_test, swap holds out a fifth of x.",
        )


def _held_out(batch: Batch, seed: int) -> tuple[Batch, Batch]:
    """Return four fifths of the rows and the rest, drawn by ``seed``."""
    with noise.seeded(noise.derive(seed, noise.Stream.DATA)):
        order = torch.randperm(len(batch["x"]))
    count = max(1, len(order) // 5)
    fitted, held_out = (
        {name: chosen(value, rows) for name, value in batch.items()}
        for rows in (order[count:], order[:count])
    )
    return fitted, held_out


def _scored(vae: VAE, family: str, x: Any, seed: int) -> Structure:
    """Return the structure of an unfitted VAE on its rows; raise ``ValueError`` if P(x) is no mass or density."""
    rows, _ = vae.checked(x)
    with standardizing(vae.modules(), restored(rows["x"], rows.get("observed"))):
        structure = inspect(vae, rows, seed).structure
    if structure.measure[0] not in ("mass", "density"):
        raise bad_value(
            "x",
            "offsets that do not come from the scored columns",
            f"a {structure.measure[0]} under {family}",
            "An offset computed from the rows tells the model what it predicts, and its scores never rank: leave it out.",
        )
    return structure


def _named(families: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """Return every family as its name and options."""
    if isinstance(families, str | bytes) or not isinstance(families, Sequence) or not families:
        raise bad_type("families", "a list of families", shown(families), 'Pass ["gaussian", "laplace"].')
    found: list[tuple[str, Mapping[str, Any]]] = []
    for family in families:
        name, options = family if isinstance(family, tuple | list) and len(family) == 2 else (family, {})
        if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
            raise bad_type(
                "families",
                "a family's options by their names",
                shown(options),
                'Pass ("gaussian", {"scale": "shared"}).',
            )
        arguments.choice("families", name, tuple(REGISTRY))
        example = f'("{name}", {{{{"{{}}": …}}}})'
        arguments.options(name, REGISTRY[name], options, taken=("network", "standardize"), example=example)
        found.append((name, options))
    return found


def _read(x: Any, argument: str, names: Names | None = None) -> tuple[Batch, Names]:
    """Return checked rows, in float32 or, if that loses something, float64; and the names of their columns."""
    batch, source = read(x, dtype=None, argument=argument, names=names, double="lossy", missing=True)
    return batch, source.names


def _taken(vae: VAE, batch: Batch, names: Names) -> dict[str, Any]:
    """Return the rows, and the offset if the VAE's likelihood takes one, for ``fit`` to cast to the VAE's dtype."""
    import pandas as pd

    offset = bool(getattr(vae.likelihood, "offset", False))
    taken = {
        name: _passed(value)
        for name, value in batch.items()
        if name != "observed" and (name == "x" or offset)
    }
    taken["x"] = _passed(restored(batch["x"], batch.get("observed")))
    if "x" in names:
        taken["x"] = pd.DataFrame(taken["x"], columns=list(names["x"]))
    return taken


def _passed(value: Tensor) -> Any:
    """Return a value of a batch as an array of its own kind; whole numbers and booleans stay tensors."""
    if isinstance(value, SparseRows):
        return value.matrix
    return value.cpu().numpy() if value.is_floating_point() else value
