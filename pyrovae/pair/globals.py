"""Writes a Bayesian model of rows as a function of one real vector u of all latents, and scores each row given u.

``baselines.PyroMCMC`` uses it. A pair's latents belong to single rows. Here latents are global: all rows share them,
and a row is scored given them. ``BayesianModel`` computes the log joint and each row's term for many u at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Size, Tensor
from torch.distributions import biject_to, constraints

from pyrovae import supports
from pyrovae.pair import masks
from pyrovae.pair.apart import at_some_draw, by_row, check_groups, scored_apart, some_points
from pyrovae.pair.context import computed_from_rows
from pyrovae.pair.contract import first_run, holds_data, latent_and_observed, no_answer
from pyrovae.pair.drawing import check_all_drawn, widened
from pyrovae.pair.inspection import OF_DTYPES, check_supports
from pyrovae.pair.running import (
    Batch,
    Latents,
    Scored,
    Sites,
    deterministic_sites,
    log_prob,
    sample_sites,
    take,
    values_of,
    with_columns,
)
from pyrovae.pair.together import Together
from pyrovae.refusals import Refused, bad_value, first_line
from pyrovae.torch_private import LinAlgError

# Most numbers, draws × rows, in a block of log-likelihoods.
_BLOCK = 1 << 21
# So many draws from the prior tell whether latents move the support of an observed site. The second number is the most
# draws that search for one that allows the rows. One is found with a probability of 98 % if a draw in a thousand does.
_FEW_DRAWS, PRIOR_DRAWS = 4, 4000


@dataclass(frozen=True)
class _Place:
    """The place of a latent in u, its shapes there and in the model, and the bounds of its numbers, None for none.

    ``simplex`` tells whether it is one.
    """

    entries: slice
    unconstrained: Size
    shape: Size
    reach: tuple[float | Tensor, float | Tensor] | None
    simplex: bool


class _Placed(poutine.messenger.Messenger):
    """Sets latents to their values at u, through the bijections onto their supports, and sums log |det|.

    Every call reads the support again, so it may depend on other latents. If ``simulated``, a set of observed
    sites, is given, these are drawn instead, and so is every latent without a place.
    """

    def __init__(self, places: dict[str, _Place], u: Tensor, simulated: frozenset[str] | None = None) -> None:
        super().__init__()
        self.places, self.u, self.simulated = places, u, simulated
        self.left = dict(places)
        self.log_det = u.new_zeros(())

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        if msg["is_observed"]:
            if self.simulated is not None and msg["name"] in self.simulated:
                msg.update(fn=widened(msg), is_observed=False, value=None, done=False)
            return
        place = self.left.pop(msg["name"], None)
        if place is None:
            if self.simulated is None:
                raise not_one_density(f"latent {msg['name']!r}, which the first call did not have")
            return
        transform = biject_to(msg["fn"].support)
        if transform.inverse_shape(msg["fn"].shape()) != place.unconstrained:
            raise not_one_density(f"latent {msg['name']!r}, whose shape changes")
        value = self.u[place.entries].reshape(place.unconstrained)
        msg["value"] = transform(value)
        msg["done"] = True
        self.log_det = self.log_det + transform.log_abs_det_jacobian(value, msg["value"]).sum()


class _DrawsInDouble(poutine.messenger.Messenger):
    """Casts the draws of latents to float64, as ``_Placed`` gives them; ``names`` are those whose prior is in another dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        if site_is_subsample(msg) or msg["is_observed"] or not torch.is_floating_point(value):
            return
        if value.dtype != torch.float64:
            msg["value"] = value.double()
            self.names.append(msg["name"])


class BayesianModel:
    """The log joint of a Bayesian model and its rows as a function of real vectors u, shape (draws, ``dim``).

    Each latent goes through torch's ``biject_to`` of its support, and densities of u include
    log |det ∂latents/∂u|. Everything is float64, whatever torch's default is. Pyro's parameter store and its
    switch for validation are left unchanged.

    Args:
        model: called as ``model(x)``, with the values beside the rows as keywords; samples its latents, observes x.
        batch: the rows, under "x", and the values beside them.

    Raises:
        ValueError: no latent, or a discrete one; no observed site, or one that does not hold x; ``pyro.param``
            statements; scaled sites; randomness outside sample sites; values off the likelihood's support.
    """

    def __init__(self, model: Callable[..., Any], batch: Batch) -> None:
        self.model, self.batch = model, batch
        with self.own_settings():
            draws = _DrawsInDouble()
            with _naming_dtypes(draws):
                sites = self._first_run(draws)
                self._places = _places(sites)
                self.dim = max(place.entries.stop for place in self._places.values())
                #: u at which the rows are on the supports that latents move, if there is one; else of any draw from the prior.
                self.first = self._u_of(sites)
                self._check_it_repeats()
            try:
                with draws:
                    scored = scored_apart(model, self._sites, batch, sites, self.dim)
                    self._rows: Scored | Refused = self._without_moving(scored)
            except Refused as refusal:  # raised later if rows are scored; all else works
                self._rows = refusal
        self._vectorised: bool | None = None

    # -----------------------------------------------------------------------------------------------------
    # Public methods

    @staticmethod
    @contextmanager
    def own_settings() -> Iterator[None]:
        """Run the model in float64, in a parameter store of its own, without validation; then restore all settings.

        Divergent steps and far proposals give NaN, on which validation would raise. The rows' values are checked
        once instead.
        """
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with pyro.get_param_store().scope(), pyro.validation_enabled(False):
                yield
        finally:
            torch.set_default_dtype(before)

    def log_joint(self, u: Tensor) -> Tensor:
        """Return log P(x, latents) + log |det| of one u, shape (dim,): a number with a graph, in nats.

        It is NaN where a matrix of the model is singular. Call it within ``own_settings()``.
        """
        try:
            return self._log_joint(u)
        except LinAlgError:
            return (u * math.nan).sum()

    def log_joints(self, u: Tensor) -> Tensor:
        """Return ``log_joint`` of many u, shape (draws, dim) → (draws,), without graphs."""
        try:
            return self._each(self._log_joint, u)
        except LinAlgError:  # at some u
            with self.own_settings(), torch.no_grad():
                return torch.stack([self.log_joint(vector) for vector in u])

    def latents(self, u: Tensor) -> Latents:
        """Return the latents by name, in the model's own space, each of shape (draws, ...)."""

        def one(vector: Tensor) -> Latents:
            sites = self._sites(self.batch, vector)
            return values_of(sites, self._places)

        return self._each(one, u)

    def deterministic(self, u: Tensor, most: int) -> tuple[Latents, dict[str, int]]:
        """Return the values of deterministic statements on the fitted rows by name, each of shape (draws, ...).

        Those of more than ``most`` numbers in all draws are left out: the second dict holds their names and numbers.
        """

        def values(vector: Tensor) -> Latents:
            with _Placed(self._places, vector):
                return deterministic_sites(self.model, self.batch)

        with self.own_settings(), torch.no_grad():
            sizes = {name: len(u) * value.numel() for name, value in values(u[0]).items()}
        kept = [name for name, size in sizes.items() if size <= most]
        left_out = {name: size for name, size in sizes.items() if size > most}
        if not kept:
            return {}, left_out

        def one(vector: Tensor) -> Latents:
            found = values(vector)
            return {name: found[name] for name in kept}

        return self._each(one, u), left_out

    def log_likelihood(self, batch: Batch, u: Tensor) -> Iterator[Tensor]:
        """Yield log P(x_n | latents) of rows, fitted or new, in blocks of shape (draws, some rows).

        Raises:
            ValueError: rows cannot be scored separately, because a latent belongs to a row, rows depend on each
                other, or the model takes no other rows.
            ValueError: values are off the likelihood's support.
        """
        rows = self.rows
        check_supports(rows, batch)
        height = max(1, _BLOCK // len(u))
        for start in range(0, len(batch["x"]), height):
            block = take(batch, slice(start, start + height))
            if not start and len(block["x"]) > 1:
                with self.own_settings(), torch.no_grad():
                    check_groups(self._sites, block, u[0], rows.data_dim)
            yield self._each(partial(self._scores, block), u, block)

    def simulate(self, u: Tensor) -> Tensor:
        """Return a row from P(x | latents) for each u, shape (rows, dim): shape (rows, ...), as x.

        Columns of x that the model does not observe come from fitted rows, chosen at random, and so do the values
        beside the rows. Draws use torch's global generator.

        Raises:
            ValueError: as ``log_likelihood``; also if the model observes other values than x's columns, or one
                column given another.
        """
        rows = self.rows
        check_all_drawn(rows.added)
        if "transformed" in rows.measure:
            raise bad_value(
                "model",
                "a model that observes unchanged columns of x, so that rows can be drawn from it",
                "sites that hold functions of them",
                'Observe the columns themselves: pyro.sample("x", …, obs=x).',
            )
        chosen = torch.randint(len(self.batch["x"]), (len(u),))
        with self.own_settings(), torch.no_grad():
            return torch.cat([self._simulated(vector, n, rows) for vector, n in zip(u, chosen, strict=True)])

    def _simulated(self, u: Tensor, like: Tensor, rows: Scored) -> Tensor:
        """Return one row from P(x | latents), in the shape of the fitted row numbered ``like``."""
        row = {name: value[like][None].clone() for name, value in self.batch.items()}
        with _Placed(self._places, u, frozenset(rows.columns)):
            sites = sample_sites(self.model, row)
        row["x"] = with_columns(row["x"], sites, rows)
        again = self._sites(row, u)
        for name in rows.columns:
            if not torch.allclose(log_prob(again[name]), log_prob(sites[name]), rtol=1e-8, atol=1e-8):
                raise bad_value(
                    "model",
                    "columns of x that depend on others only through latents, so that rows can be drawn from it",
                    f"site {name!r}, which depends on others directly",
                    "Simulate it by hand from the draws in .posterior.",
                )
        return row["x"]

    @property
    def rows(self) -> Scored:
        """The inspection of the rows; raises ``ValueError`` if they cannot be scored separately."""
        if isinstance(self._rows, Refused):
            raise Refused(str(self._rows))
        return self._rows

    @property
    def measure(self) -> tuple[str, ...]:
        """For every column of the flattened x, what log P of all rows together measures; see ``Together``."""
        return self.together.measure

    @cached_property
    def together(self) -> Together:
        """The measure of log P of all rows together, which is defined even if rows cannot be scored separately."""
        with self.own_settings(), torch.no_grad():
            points = some_points(self._sites, self.batch, self.dim, seed=1)
            first, second = (values_of(self._sites(self.batch, u), self._places) for u in points)
            found = Together.of(self.model, self.batch, (first, second))
        if isinstance(self._rows, Scored):
            computed = "pseudo-likelihood" in self._rows.measure
        else:
            computed = bool(computed_from_rows(self.batch))
        if computed:
            found = replace(found, measure=("pseudo-likelihood",) * len(found.measure))
        return found

    @property
    def own_totals(self) -> tuple[str, ...]:
        """Names of totals of the rows that they are scored given; see ``Structure.own_totals``."""
        return () if isinstance(self._rows, Refused) else self._rows.own_totals

    @property
    def shapes(self) -> dict[str, Size]:
        """The shape of every latent in the model's own space, by name, in the order of ``latents``."""
        return {name: place.shape for name, place in self._places.items()}

    @property
    def bounds(self) -> dict[str, tuple[float | Tensor, float | Tensor]]:
        """The bounds of every latent that has some, by name, at one draw from the prior; other latents may move them."""
        return {name: place.reach for name, place in self._places.items() if place.reach is not None}

    @property
    def simplexes(self) -> frozenset[str]:
        """The names of the latents that are simplexes."""
        return frozenset(name for name, place in self._places.items() if place.simplex)

    def from_prior(self) -> Tensor:
        """Return u of a draw of the latents from the prior, shape (dim,). Call it within ``own_settings()``."""
        with _DrawsInDouble():
            return self._u_of(at_some_draw(lambda: sample_sites(self.model, self.batch)))

    def _u_of(self, sites: Sites) -> Tensor:
        """Return u of the latents of a run, shape (dim,)."""
        parts = [
            biject_to(sites[name]["fn"].support).inv(sites[name]["value"]).flatten() for name in self._places
        ]
        return torch.cat(parts).detach()

    @property
    def site_names(self) -> list[str]:
        """The name of the latent that each coordinate of u belongs to."""
        return [name for name, place in self._places.items() for _ in range(place.unconstrained.numel())]

    @property
    def labels(self) -> list[str]:
        """A name for every number of the latents: "mu", "W[0, 1]", in the order of ``latents``."""
        found = []
        for name, place in self._places.items():
            indices = torch.ones(place.shape).nonzero().tolist() if place.shape else [[]]
            found += [f"{name}{index or ''}" for index in indices]
        return found

    # -----------------------------------------------------------------------------------------------------
    # Running the model

    def _run(self, batch: Batch, u: Tensor) -> tuple[Sites, Tensor]:
        """Return the model's sites with the latents at u, and log |det|."""
        placed = _Placed(self._places, u)
        with placed:
            sites = sample_sites(self.model, batch)
        if placed.left:
            raise not_one_density(f"no latent {next(iter(placed.left))!r}, which the first call had")
        return sites, placed.log_det

    def _log_joint(self, u: Tensor) -> Tensor:
        sites, log_det = self._run(self.batch, u)
        # The rows were checked once against bounds that are numbers. Latents may move others.
        terms = (
            log_prob(site, site["is_observed"] and supports.has_number_bounds(site["fn"])).sum()
            for site in sites.values()
        )
        return sum(terms, start=log_det)

    def _sites(self, batch: Batch, u: Tensor) -> Sites:
        return self._run(batch, u)[0]

    def _scores(self, batch: Batch, u: Tensor) -> Tensor:
        return by_row(self._sites(batch, u), self.rows.data_dim, len(batch["x"]))[0]

    def _each(self, one: Callable[[Tensor], Any], u: Tensor, batch: Batch | None = None) -> Any:
        """Return ``one`` of each u about a batch, stacked; computed by torch.vmap if the model allows it, else in turn."""
        with self.own_settings(), torch.no_grad():
            if self._vectorised is None:
                self._vectorised = self._vectorises(u)
            if self._vectorised:
                width = (batch or self.batch)["x"].numel() + self.dim
                return torch.vmap(one, chunk_size=max(1, _BLOCK // width))(u)
            answers = [one(vector) for vector in u]
        if isinstance(answers[0], dict):
            return {name: torch.stack([answer[name] for answer in answers]) for name in answers[0]}
        return torch.stack(answers)

    def _vectorises(self, u: Tensor) -> bool:
        """Return whether torch.vmap over the model gives the same for two u as separate calls."""
        pair = u[[0, -1]]
        each = torch.stack([self.log_joint(vector) for vector in pair])
        try:
            together = torch.vmap(self._log_joint)(pair)
        except Exception:  # a model may fail in any way under vmap; it is then called in turn
            return False
        return bool(torch.isclose(each, together, rtol=1e-9, atol=1e-9, equal_nan=True).all())

    # -----------------------------------------------------------------------------------------------------
    # Checks of the model

    def _first_run(self, draws: _DrawsInDouble) -> Sites:
        """Draw the latents from the prior once, and check the requirements of every method."""

        def drawn() -> Sites:
            with draws:
                return first_run(self.model, "model", self.batch)

        sites = self._possible(at_some_draw(drawn), drawn)
        declared = list(pyro.get_param_store())
        if declared:
            raise bad_value(
                "model",
                "sample sites for all unknowns, because only a posterior is fitted",
                f"{len(declared)} parameter(s), first {declared[0]!r}",
                "Give it a prior, pyro.sample or PyroSample, or make it a constant.",
            )
        fix = "Sample the unknown quantities; only they have a posterior."
        latents, observed = latent_and_observed(sites, fix)
        for name in observed:
            off = masks.off_support(sites[name])
            if off is not None and name in self._moving:
                raise bad_value(
                    "x",
                    f"values that site {name!r} can score at some draw of the latents that its support depends on",
                    f"values off it at each of {PRIOR_DRAWS} draws from the prior; at one, {_off(sites[name], off)}",
                    "Give these latents a prior that reaches the values, or choose another likelihood.",
                )
            if off is not None:
                raise masks.cannot_score(sites[name], "x", _off(sites[name], off))
        for name in latents:
            masks.check_density("model", name, sites[name]["fn"])
            counted = masks.entries(sites[name])
            if counted is not None and not bool(counted.all()):
                fix = "A masked latent has no posterior: sample only the entries that exist."
                if name.endswith("_unobserved"):
                    fix = (
                        "obs_mask makes a latent of the entries that are not observed. In its place, write "
                        ".mask(observed) on the distribution, or observe only the entries that exist."
                    )
                raise bad_value(
                    "model",
                    f"a density at every entry of latent {name!r}",
                    f"{int((~counted).sum())} entries that are masked",
                    fix,
                )
        return sites

    def _possible(self, sites: Sites, drawn: Callable[[], Sites]) -> Sites:
        """Return the first of some runs on draws from the prior at which rows are on the supports that latents move.

        It is the given run if there is none. ``_moving`` becomes the names of the sites that have such supports.
        """
        unsure = [
            name
            for name, site in sites.items()
            if site["is_observed"] and holds_data(site) and not supports.has_number_bounds(site["fn"])
        ]
        runs = [sites, *(at_some_draw(drawn) for _ in range(_FEW_DRAWS if unsure else 0))]
        self._moving = frozenset(
            name
            for name in unsure
            if any(name in other and supports.differ(sites[name]["fn"], other[name]["fn"]) for other in runs)
        )
        for number in range(PRIOR_DRAWS if self._moving else 0):
            other = runs[number] if number < len(runs) else at_some_draw(drawn)
            if all(name in other and masks.off_support(other[name]) is None for name in self._moving):
                return other
        return sites

    def _without_moving(self, scored: Scored) -> Scored:
        """Return a row's inspection without supports that latents move: a row off them has log P = −∞ there."""
        moved = {column for name in self._moving for column in scored.columns.get(name, ())}
        kept = tuple(support for support in scored.supports if not moved.intersection(support.columns))
        return replace(scored, supports=kept)

    def _check_it_repeats(self) -> None:
        """Raise ``ValueError`` unless the same u has the same log joint, and reordered rows other observed values."""
        u = torch.zeros(self.dim, dtype=torch.float64)
        first, again = (self._sites(self.batch, u) for _ in range(2))
        for name, site in first.items():
            a, b = log_prob(site), log_prob(again[name])
            if a.shape != b.shape or not torch.equal(a.nan_to_num(), b.nan_to_num()):
                raise bad_value(
                    "model",
                    "the same log-probability from the same rows and latents",
                    f"another at site {name!r}",
                    "Draw randomness at sample sites only, and put networks with dropout into eval() mode.",
                )
        backwards = {name: value.flip(0) for name, value in self.batch.items()}
        if torch.equal(backwards["x"], self.batch["x"]):
            return
        held = [name for name, site in first.items() if site["is_observed"] and holds_data(site)]
        turned = self._sites(backwards, u)
        if all(torch.equal(first[name]["value"], turned[name]["value"]) for name in held):
            raise no_answer(held[0])


@contextmanager
def _naming_dtypes(draws: _DrawsInDouble) -> Iterator[None]:
    """Run a block; an error about dtypes becomes a ``ValueError`` that says what to cast."""
    try:
        yield
    except RuntimeError as error:
        reason = first_line(error.__cause__ or error)  # Pyro raises it again with a page of shapes
        if not any(words in reason for words in OF_DTYPES):
            raise
        fix = "Cast the tensors and networks that it uses by .double(), labels by .long()."
        if draws.names:
            fix += (
                f" Write the prior of latent {draws.names[0]!r} with tensors in float64, such as "
                "torch.tensor(0.0, dtype=torch.float64): .double() does not cast distributions."
            )
        raise bad_value(
            "model",
            "tensors in float64, in which everything is computed",
            f"a {type(error).__name__} from it: {reason}",
            fix,
        ) from error


def not_one_density(came: str) -> Refused:
    """Return the error for a model that is not one density."""
    return bad_value(
        "model",
        "the same latents in the same shapes at every call",
        came,
        "Make the sites independent of the drawn values; a mixture over structures is no density of u.",
    )


def _off(site: Any, off: Tensor) -> str:
    """Return a text on the values of a site that are off its support."""
    value = site["value"]
    first = f", the first {float(value[off].flatten()[0]):g}" if off.shape == value.shape else ""
    return f"{int(off.sum())} off it{first}"


def _places(sites: Sites) -> dict[str, _Place]:
    """Return the place in u of each latent of a first run."""
    places: dict[str, _Place] = {}
    start = 0
    for name, site in sites.items():
        if site["is_observed"]:
            continue
        support = site["fn"].support
        if support.is_discrete:
            raise bad_value(
                "model",
                "continuous latents: NUTS follows a gradient",
                f"the discrete latent {name!r}",
                "Sum it out in the model: dist.MixtureSameFamily, or log-probabilities added by logsumexp.",
            )
        try:
            transform = biject_to(support)
        except NotImplementedError as error:
            raise bad_value(
                "model",
                "latents whose space has a bijection with the real numbers",
                f"latent {name!r} on {support}",
                "Write it as a function of latents that have one.",
            ) from error
        shape = site["fn"].shape()
        unconstrained = transform.inverse_shape(shape)
        entries = slice(start, start + unconstrained.numel())
        simplex = supports.support(site["fn"]) is constraints.simplex
        places[name] = _Place(entries, unconstrained, shape, supports.reach(site["fn"]), simplex)
        start += unconstrained.numel()
    return places
