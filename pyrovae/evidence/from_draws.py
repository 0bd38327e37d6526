"""from_draws() estimates the evidence of a posterior from draws of any sampler, by bridge sampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyrovae import arguments, identity, supports
from pyrovae.arrays import as_numpy, from_tensor
from pyrovae.chain_diagnostics import Checks, check
from pyrovae.evidence.bridge import bridge
from pyrovae.evidence.result import LogEvidence, given_of
from pyrovae.refusals import bad_type, bad_value, shown
from pyrovae.rows import read_in_double
from pyrovae.turns import takes_turns

#: Up to the first number, the relative error of a bridge is about the error of the logarithm. Above the second, the
#: partner and the posterior hardly overlap.
_MOST_ERROR, _NO_OVERLAP = 0.25, 1.0
#: Probability with which draws of the density are said not to be.
_FALSE_ALARMS = 1e-5
#: Largest share of the points at which the density may be NaN.
_MOST_UNDEFINED = 0.01
#: Largest share of the draws on the last numbers before a bound. The lost mass may be many times this share.
_MOST_ROUNDED = 1e-3
#: Draws next to a bound, and distances from it, at which the density is computed. It is flat there if it is higher by at
#: most the third number nearer to the bound, in nats. The density of Beta(1, b) rises by more in the last four numbers
#: alone if b < 0.5.
_EDGE_POINTS, _EDGE_STEPS, _MOST_RISE = 20, 40, math.log(2)
#: Largest rounding of the density that is no reason to distrust, in nats.
_MOST_ROUNDING = 0.01
#: Digits after the point, all zero, by which draws are whole numbers; by chance this has a probability of 10⁻⁹.
_ENOUGH_DIGITS = 30
#: Points that log_density is called with at once.
_ROWS = 1000
#: arviz splits chains in halves, and has no R-hat of shorter ones.
_FEWEST = 20
_MEASURES = ("density", "mass", "unscored")


@takes_turns
def from_draws(
    log_density: Callable[[Any], Any],
    draws: Any,
    *,
    variables: Sequence[str] | None = None,
    bounds: Mapping[Any, tuple[float, float]] | None = None,
    x: Any = None,
    measure: str | Sequence[str] = "density",
    warp: bool = False,
    seed: int = 0,
) -> LogEvidence:
    """Return log Z of an unnormalised density exp(log_density(θ)), in nats, from its draws by any sampler.

    Z = ∫ exp(log_density(θ)) dθ is the evidence P(x) if log_density(θ) = log P(x | θ) + log P(θ), constants included:

        log Z = log { E_q [p h] / E_p [q h] },    h ∝ 1 / (s₁ p / Z + s₂ q),    p = exp(log_density).

    The partner q is a Gaussian or a mixture of Gaussians, fitted to the first half of every chain. The second half
    enters the bridge. See ``evidence.bridge`` for the iteration, the error and k-hat of both sides.

    ``log_density`` takes points in the form of ``draws`` and must work on many at once. If ``draws`` is an array or a
    tensor, it gets one of shape (n, dim). If ``draws`` has names, it gets a dict from names to arrays of shape (n, …).
    Numbers are float64; they are tensors if the draws are tensors, and numpy arrays otherwise. It returns n log
    densities; for one point, a scalar will do. If it returns −∞, the density is zero.

    Args:
        log_density: log of the density that was sampled, as a density of the numbers in ``draws``. If ``draws`` holds
            a parameter that the sampler transformed, the log Jacobian must be part of it.
        draws: an array or tensor of shape (chains, draws, dim), or (draws, dim) for one chain. Also a dict from names
            to arrays of shape (chains, draws, …), or ArviZ data with a posterior, of 0.x or 1.x.
        variables: which names to use. Leave out quantities that are functions of others. None means all.
        bounds: column number or name → (low, high) of a parameter with bounds, ±inf for none. It is then mapped to the
            real line, with the Jacobian. A parameter without an entry may take all real numbers.
        x: the rows that the posterior is conditional on, or a dict of them as for ``PyroMCMC.fit``.
            ``compare_evidence`` needs them to check that models share their rows.
        measure: of x: "density", "mass" or "unscored" for columns that are conditions only; one for all columns or one
            for each.
        warp: whether to make the density symmetric before the bridge (warp-3, Meng and Schilling 2002), with a single
            Gaussian. It helps with skew, and doubles the evaluations.
        seed: of the partner's draws. They also depend on ``draws``: other draws get other noise.

    Returns:
        One entry with target "evidence" and kind "estimate". Its ``pareto_k`` is the larger k-hat of the two
        sides. Its verdict is "trust" if chains and bridge pass all checks; ``reasons`` lists those that failed.

        The verdict is "more samples" if one of these holds:

        * R-hat is above 1.01, or the effective sample size is below 400 (Vehtari et al. 2021). Draws that were resampled with
          replacement count once.
        * The error is above 0.25 nats.

        The verdict is "another method" if one of these holds:

        * The error is above 1 nat. Partner and posterior then hardly overlap.
        * Draws and density do not belong together. The test has a false-alarm rate of 1e-5.
        * Over 0.1 % of the draws are the last number before a bound, so mass is lost there. If the density is flat there,
          the limit is 0.4 % for the last four numbers of float32.
        * The density is NaN at more than 1 % of the points.

        The terms of both sides are bounded. If k-hat of a side exceeds its limit, the error includes the largest term
        that the draws may have missed. No check detects a mode that no draw has visited.

    Raises:
        TypeError: ``log_density`` is not callable; ``draws`` are not numbers.
        ValueError: draws are too few, constant, whole numbers, not finite, outside ``bounds``, or in a plane. The log
            density is not finite at a draw, has a wrong shape, differs between calls, or ignores a dimension.

    Meng and Wong (1996); Gronau et al. (2017); Micaletto and Vehtari (2025).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> draws = rng.gamma(3.0, size=(4, 500, 1))  # of x² exp(−x), whose integral is Γ(3) = 2
        >>> def log_density(x):
        ...     return 2 * np.log(x[:, 0]) - x[:, 0]
        >>> ev = from_draws(log_density, draws, bounds={0: (0, np.inf)})
        >>> abs(ev.total - np.log(2)) < 5 * ev.mean_mcse < 0.05, ev.verdict[0].item()
        (True, 'trust')
    """
    if not callable(log_density):
        raise bad_type("log_density", "a function of points", shown(log_density), "Pass a function.")
    arguments.boolean("warp", warp)
    arguments.integer("seed", seed, minimum=0)
    space = _Space(draws, variables, bounds or {})
    target = _Target(log_density, space)
    about = _about(x, measure)
    target.check(space.u)
    return LogEvidence(
        **by_bridge(
            target,
            space.u,
            check(space.u, space.names, 0),
            names=space.names,
            warp=warp,
            seed=seed,
            lost=space.lost(target.at),
        ),
        **about,
        seed=seed,
    )


def by_bridge(
    log_target: Callable[[Tensor], Tensor],
    draws: Tensor,
    checks: Checks,
    *,
    names: Sequence[str],
    warp: bool,
    seed: int,
    lost: Sequence[str],
) -> dict[str, Any]:
    """Return the fields of a ``LogEvidence`` on log ∫ exp(log_target(u)) du that the bridge knows.

    Args:
        log_target: log of the unnormalised density of vectors, (n, dim) → (n,).
        draws: shape (chains, draws, dim).
        checks: of the chains.
        names: of the dimensions.
        warp: see ``bridge``.
        seed: of the partner's draws.
        lost: what ``beyond_numbers`` returned.
    """
    found = bridge(log_target, draws, warp=warp, seed=seed, names=names)
    hopeless, doubtful = list(lost), list(checks.problems)
    if not found.error <= _NO_OVERLAP:
        hopeless.append(f"an error of {found.error:.2g} nats: partner and posterior hardly overlap")
    elif found.error > _MOST_ERROR:
        doubtful.append(f"an error of {found.error:.2g} nats, above {_MOST_ERROR}: draw more")
    if found.error <= _NO_OVERLAP and found.chance < _FALSE_ALARMS:
        # Standard errors from few effective draws are too small now and then.
        (doubtful if checks.problems else hopeless).append(
            f"the draws are not from this density: they deviate by {found.imbalance:.1f} standard errors. Check "
            "Jacobians, bounds, the order of columns, that all modes have their share of the draws, and that chains are "
            "kept apart"
        )
    undefined = found.undefined / found.evaluations
    if undefined > _MOST_UNDEFINED:
        hopeless.append(
            f"the density is NaN at {undefined:.1%} of the points: return −∞ where it is zero, or state "
            "the bounds of the parameters"
        )
    rounding = getattr(log_target, "rounding", 0.0)
    if rounding > _MOST_ROUNDING:
        doubtful.append(f"log_density rounds to {rounding:.2g} nats: compute it in float64")
    method = "warp-3 bridge" if warp else "bridge"
    return {
        "estimate": np.array([found.log_evidence]),
        "mcse": np.array([found.error]),
        "bias": np.array([found.bias]),
        "ess": np.array([checks.ess]),
        "pareto_k": np.array([max(found.pareto_k)]),
        "cost": np.array([float(found.evaluations)]),
        "kind": np.array(["estimate"]),
        "verdict": np.array(["another method" if hopeless else "more samples" if doubtful else "trust"]),
        "reasons": (*hopeless, *doubtful),
        "method": method,
        "answered_by": np.array([method]),
        "num_samples": draws.shape[0] * draws.shape[1],
        "tile": None,
        "target": "evidence",
        "parameters": "posterior-averaged",
    }


def beyond_numbers(
    draws: Mapping[str, Tensor],
    bounds: Mapping[str, tuple[float | Tensor, float | Tensor]],
    simplexes: Collection[str] = (),
    part_lost: Callable[[str], float] = lambda name: 1.0,
) -> tuple[str, ...]:
    """Return, in words, whether draws, (chains, draws, ...), are the last numbers before a bound too often.

    Below 1, floats end at 1 − 2⁻⁵³. A density that rises there, such as that of Beta(1, 0.05), has much of its mass between.

    Args:
        draws: by name.
        bounds: by name.
        simplexes: names of draws that torch made by breaking a stick.
        part_lost: returns the part of a name's draws next to bounds that counts as lost; called where there are many.
    """

    def at_edge(name: str, value: Tensor) -> Tensor:
        value = _narrowest(value)
        return supports.at_simplex_edge(value) if name in simplexes else supports.at_edge(value, bounds[name])

    shares = {
        name: float(at_edge(name, value).double().mean(dim=(0, 1)).max())
        for name, value in draws.items()
        if name in bounds and value.numel()
    }
    many = sorted(
        (
            name
            for name, share in shares.items()
            if share > _MOST_ROUNDED and share * part_lost(name) > _MOST_ROUNDED
        ),
        key=shares.__getitem__,
    )
    if not many:
        return ()
    others = f" (and in {len(many) - 1} others)" if len(many) > 1 else ""
    return (
        f"{shares[many[-1]]:.2%} of the draws of {many[-1]!r}{others} are the last numbers before a bound, and mass beyond is "
        "lost: sample it on another scale, such as its distance from the bound, or its log odds",
    )


def _narrowest(value: Tensor) -> Tensor:
    """Return numbers in float32 if it holds them all, because they were computed in it."""
    narrow = value.float()
    return narrow if bool((narrow == value).all()) else value


def _about(x: Any, measure: Any) -> dict[str, Any]:
    """Return the fields of a ``LogEvidence`` on the rows x, which may be None."""
    each = tuple(measure) if isinstance(measure, list | tuple) else (measure,)
    for kind in each:
        arguments.choice("measure", kind, _MEASURES)
    if x is None:
        return {"fingerprint": identity.NO_ROWS, "measure": ()}
    batch, source = read_in_double(x)
    columns = batch["x"][0].numel()
    if len(each) not in (1, columns):
        raise bad_value(
            "measure", f"one word, or one for each of {columns} columns", f"{len(each)}", "Pass one word."
        )
    return {
        "fingerprint": identity.fingerprint(source.exact, names=source.names.get("x")),
        "measure": each * columns if len(each) == 1 else each,
        "given": given_of(batch),
    }


class _Space:
    """The space of the draws: names and shapes of its variables, their bounds, and the draws mapped to the real line.

    ``u`` are the mapped draws, (chains, draws, dim), float64, and ``names`` those of its dimensions.
    """

    def __init__(self, draws: Any, variables: Sequence[str] | None, bounds: Mapping[Any, Any]) -> None:
        group = getattr(draws, "posterior", draws)  # of InferenceData or DataTree
        if hasattr(group, "data_vars"):
            group = {
                name: value.transpose("chain", "draw", ...).values for name, value in group.data_vars.items()
            }
        self.labelled = isinstance(group, Mapping)
        if self.labelled:
            parts = _chosen(group, variables)
        elif variables is not None:
            raise bad_value(
                "variables", "draws with names", f"a {type(draws).__name__}", "Select columns of the array."
            )
        else:
            parts = {"draws": group}
        self.tensors = any(isinstance(part, Tensor) for part in parts.values())
        values = {name: _numbers(part, name, self.labelled) for name, part in parts.items()}
        lengths = {tuple(value.shape[:2]) for value in values.values()}
        if len(lengths) > 1:
            raise bad_value(
                "draws", "as many chains and draws of every variable", f"{lengths}", "Pass one run's draws."
            )
        self.shapes = {name: value.shape[2:] for name, value in values.items()}
        theta = torch.cat([value.reshape(*value.shape[:2], -1) for value in values.values()], dim=2)
        owners: Sequence[Any] = range(theta.shape[2])
        self.names = [f"column {column}" for column in owners]
        if self.labelled:
            owners = [name for name, shape in self.shapes.items() for _ in range(shape.numel())]
            places = [place for shape in self.shapes.values() for place in np.ndindex(tuple(shape))]
            self.names = [f"{name}{list(place) or ''}" for name, place in zip(owners, places, strict=True)]
        if not isinstance(bounds, Mapping):
            raise bad_type("bounds", "a dict", shown(bounds), "Pass {0: (0, math.inf)}, for example.")
        ends = {key: _bound(key, pair, owners) for key, pair in bounds.items()}
        low, high = zip(*(ends.get(owner, (-math.inf, math.inf)) for owner in owners), strict=True)
        self._maps = {
            i: _from_line(*pair) for i, pair in enumerate(zip(low, high, strict=True)) if owners[i] in ends
        }
        integers = [
            _of_integers(parts[name]) for name, shape in self.shapes.items() for _ in range(shape.numel())
        ]
        _check_draws(theta, torch.tensor(low), torch.tensor(high), self.names, torch.tensor(integers))
        self._theta, self._bounds = theta, list(zip(low, high, strict=True))
        self.u = theta.clone()
        for column, onto in self._maps.items():
            self.u[..., column] = onto.inv(theta[..., column])

    def lost(self, density: Callable[[Tensor], Tensor]) -> tuple[str, ...]:
        """Return what ``beyond_numbers`` finds in the draws; ``density`` is the log density of points θ, (n, dim) → (n,)."""
        columns = dict(zip(self.names, self._theta.unbind(dim=2), strict=True))

        def part_lost(name: str) -> float:
            return self._part_lost(density, self.names.index(name))

        return beyond_numbers(columns, dict(zip(self.names, self._bounds, strict=True)), part_lost=part_lost)

    def _part_lost(self, density: Callable[[Tensor], Tensor], column: int) -> float:
        """Return the part of a column's draws next to its bounds that counts as lost, 1 if it is unknown.

        Between the last number of float32 and an upper bound, the density can be computed in float64. If it is flat there, the
        mass that lies there is to the share of the draws nearby as the widths are.
        """
        wide, (low, high) = self._theta[..., column], self._bounds[column]
        value = _narrowest(wide)
        at_edge = supports.at_edge(value, (low, high))
        if value.dtype == wide.dtype or bool((at_edge & (wide - low <= high - wide)).any()):
            return 1.0
        points = self._theta[at_edge]
        points = points[torch.linspace(0, len(points) - 1, _EDGE_POINTS).long()].repeat(_EDGE_STEPS, 1)
        last, least = (
            high - supports.inner_bounds((low, high), dtype)[1].double()
            for dtype in (value.dtype, wide.dtype)
        )
        farthest = high - wide[at_edge].min()
        steps = torch.logspace(0, 1, _EDGE_STEPS, base=float(least / farthest), dtype=torch.float64)
        points[:, column] = high - (steps * farthest).repeat_interleave(_EDGE_POINTS)
        found = density(points).view(_EDGE_STEPS, _EDGE_POINTS)
        flat = bool((found - found[0] <= _MOST_RISE).all())
        return float(last / farthest) if flat else 1.0

    def from_line(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return the points of real numbers, shape (n, dim), and the log Jacobian, shape (n,)."""
        theta, jacobian = u.clone(), torch.zeros(len(u), dtype=torch.float64)
        for column, onto in self._maps.items():
            theta[:, column] = onto(u[:, column])
            jacobian += onto.log_abs_det_jacobian(u[:, column], theta[:, column])
        return theta, jacobian

    def points(self, theta: Tensor) -> Any:
        """Return points, shape (n, dim), in the form of the user's draws."""
        given: Any = theta if self.tensors else theta.numpy()
        if not self.labelled:
            return given
        ends = np.cumsum([shape.numel() for shape in self.shapes.values()])
        parts = zip(self.shapes.items(), ends, strict=True)
        return {
            name: given[:, end - shape.numel() : end].reshape(len(given), *shape)
            for (name, shape), end in parts
        }


def _chosen(group: Mapping[str, Any], variables: Sequence[str] | None) -> dict[str, Any]:
    """Return the variables that were asked for, in this order."""
    names: Sequence[Any] = variables if isinstance(variables, list | tuple) else [variables]
    if variables is None:
        names = list(group)
    missing = [name for name in names if name not in group]
    if missing or not names:
        raise bad_value(
            "variables",
            f"names among {', '.join(map(repr, group)) or 'none'}",
            ", ".join(map(repr, missing)) or "none",
            "Pass names of the draws.",
        )
    return {name: group[name] for name in names}


def _numbers(value: Any, name: str, labelled: bool) -> Tensor:
    """Return draws of one variable in float64, shape (chains, draws, …)."""
    argument = f"draws[{name!r}]" if labelled else "draws"
    tensor = (
        from_tensor(value, None, torch.device("cpu"), argument, "always")
        if isinstance(value, Tensor)
        else torch.from_numpy(as_numpy(value, argument)).double()
    )
    if not labelled and tensor.dim() == 2:
        tensor = tensor[None]
    if (tensor.dim() < 2) if labelled else (tensor.dim() != 3):
        raise bad_value(
            argument,
            "shape (chains, draws, …)" if labelled else "shape (chains, draws, dim) or (draws, dim)",
            f"{tuple(tensor.shape)}",
            "Keep the chains apart, as with group_by_chain=True in NumPyro; add value[None] for one chain."
            if labelled
            else "A single parameter needs a last dim of one: draws[..., None].",
        )
    if len(tensor) > tensor.shape[1] or tensor.shape[1] < _FEWEST:
        raise bad_value(
            argument,
            f"at least {_FEWEST} draws in a chain, and no more chains than draws in each",
            f"shape {tuple(tensor.shape)}, which is {len(tensor)} chains of {tensor.shape[1]} draws",
            "Draw more. If draws come first, as in emcee, pass draws.swapaxes(0, 1). A single parameter in chains needs a "
            "last dim of one: draws[..., None].",
        )
    return tensor


def _of_integers(value: Any) -> bool:
    """Return whether numbers have a type of whole numbers."""
    if isinstance(value, Tensor):
        return not value.is_floating_point()
    return np.asarray(value).dtype.kind in "iub"


def _bound(key: Any, pair: Any, owners: Sequence[Any]) -> tuple[float, float]:
    """Return a bound as floats; raise ``ValueError`` unless its variable is known and low < high."""
    if key not in owners:
        raise bad_value(
            "bounds",
            f"keys among {', '.join(map(repr, dict.fromkeys(owners)))}",
            repr(key),
            "Use a column's number, or a variable's name if the draws have names.",
        )
    try:
        low, high = (float(end) for end in pair)
    except (TypeError, ValueError):
        low = high = 0.0
    if not low < high:
        raise bad_value(
            "bounds", "a pair (low, high), low < high", f"{shown(pair)} for {key!r}", "Use ±inf for no bound."
        )
    return low, high


def _from_line(low: float, high: float) -> Any:
    """Return the transform from real numbers to those between bounds."""
    if math.isinf(high):
        return biject_to(constraints.real if math.isinf(low) else constraints.greater_than(low))
    return biject_to(constraints.less_than(high) if math.isinf(low) else constraints.interval(low, high))


def _check_draws(theta: Tensor, low: Tensor, high: Tensor, names: Sequence[str], integers: Tensor) -> None:
    """Raise ``ValueError`` unless draws, shape (chains, draws, dim), move continuously within their bounds.

    ``integers`` tells which columns have a type of whole numbers, (dim,).
    """
    if len(theta.unique(dim=0)) < len(theta):
        raise bad_value(
            "draws",
            "chains of their own",
            "two chains that are the same",
            "Give each chain a seed of its own.",
        )
    whole, still = (
        (theta == other).flatten(0, 1).all(dim=0).expand_as(theta) for other in (theta.round(), theta[:1, :1])
    )
    for found, expected, came, fix in (
        (~torch.isfinite(theta), "finite numbers", "NaN or infinite", "Look for a failed run."),
        (still, "draws that move", "constant", "Leave out what is fixed, in draws and in log_density."),
        (
            whole & (_fractional(theta) | integers),
            "draws of continuous parameters",
            "whole numbers",
            "Sum discrete parameters out of log_density, and leave them out of the draws.",
        ),
        (
            ~((theta > low) & (theta < high)),
            "draws between their bounds",
            "on or beyond them",
            "Correct the bounds; in float32, draws may round onto them.",
        ),
    ):
        if bool(found.any()):
            chain, draw, column = found.nonzero()[0].tolist()
            raise bad_value(
                "draws",
                expected,
                f"{names[column]} {came} at {int(found[..., column].sum())} of {found[..., 0].numel()} draws, "
                f"first {theta[chain, draw, column].item():g} at chain {chain}, draw {draw}",
                fix,
            )


def _fractional(theta: Tensor) -> Tensor:
    """Return which draws, (chains, draws, dim), have digits after the point, in columns with enough of these to be judged by.

    Large floats are all whole: beyond 2⁵³, and beyond 2²³ in float32. Smaller ones are by chance, each digit with probability ½.
    """
    columns = [_narrowest(column) for column in theta.unbind(dim=2)]
    last = torch.tensor([-math.log2(torch.finfo(column.dtype).eps) for column in columns])
    digits = (last - theta.abs().log2().floor()).clamp(min=0)
    return (digits > 0) & (digits.sum(dim=(0, 1)) >= _ENOUGH_DIGITS)


class _Target:
    """The user's log density as a density of real numbers u, (n, dim) → (n,), float64.

    ``rounding`` is the spacing of its values in their own dtype, in nats.
    """

    def __init__(self, log_density: Callable[[Any], Any], space: _Space) -> None:
        self._log_density, self._space = log_density, space
        self.rounding = 0.0

    def __call__(self, u: Tensor) -> Tensor:
        return torch.cat([self._some(part) for part in u.split(_ROWS)])

    def _some(self, u: Tensor) -> Tensor:
        theta, jacobian = self._space.from_line(u)
        return self.at(theta) + jacobian

    def at(self, theta: Tensor) -> Tensor:
        """Return the log density of points in the user's own space, (n, dim) → (n,)."""
        points = self._space.points(theta)
        try:
            with np.errstate(all="ignore"):
                found = self._log_density(points)
        except Exception as error:
            where = {name: (len(theta), *shape) for name, shape in self._space.shapes.items()}
            raise bad_value(
                "log_density",
                f"a function of {where if self._space.labelled else f'an array of shape {tuple(theta.shape)}'}, float64",
                f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
                "Write it for many points at once; compare the draws' columns with those that it expects.",
            ) from error
        values = found.detach().cpu() if isinstance(found, Tensor) else torch.as_tensor(np.array(found))
        if len(theta) == 1 and values.dim() == 0:  # as scipy's multivariate densities return
            values = values[None]
        if values.shape != (len(theta),) or values.is_complex():
            raise bad_value(
                "log_density",
                f"a real number for each of {len(theta)} points, shape ({len(theta)},)",
                f"shape {tuple(values.shape)}, {values.dtype}",
                "Return one number a point; jax.vmap, torch.vmap or np.apply_along_axis vectorises a function of one.",
            )
        if values.is_floating_point():
            finite = values[torch.isfinite(values)]
            if len(finite):
                spacing = float(finite.double().abs().median()) * torch.finfo(values.dtype).eps
                self.rounding = max(self.rounding, spacing)
        return values.double()

    def check(self, u: Tensor) -> None:
        """Raise ``ValueError`` unless the density repeats, scores each point alone, and depends on every dimension."""
        places = torch.linspace(0, u.shape[1] - 1, 8).long()
        some = u[0, places]
        together, apart = self(some), torch.cat([self(one[None]) for one in some])
        both = torch.isfinite(together) & torch.isfinite(apart)
        tolerance = 1e-8 * (1 + together.abs()) + 100 * self.rounding
        off = (together - apart).abs() > tolerance
        if bool((off & both).any()):
            raise bad_value(
                "log_density",
                "the same number for a point whenever it is called, alone or among others",
                f"{together[off & both][0].item():.9g} among 8 points and {apart[off & both][0].item():.9g} alone",
                "Sum over data and parameters only, and use neither random numbers nor minibatches.",
            )
        dim, scale = u.shape[2], u.flatten(0, 1).std(dim=0)
        moved = torch.stack([some + sign * scale.diag()[:, None] for sign in (-30, 30)])  # (2, dim, 8, dim)
        ignored = (self(moved.reshape(-1, dim)).view(2, dim, 8) == together).all(dim=2).all(dim=0)
        if bool(ignored.any()):
            raise bad_value(
                "log_density",
                "a density that depends on every dimension of the draws",
                f"the same values whatever {self._space.names[int(ignored.int().argmax())]} is",
                "Its integral is infinite. Leave the dimension out of the draws (variables=…), or add its prior.",
            )
