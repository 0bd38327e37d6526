"""diagnose() tells whether the latent code is used and whether the encoder finds it: rates, information, gaps, advice."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyrovae import arguments, frames, noise, pages
from pyrovae.evaluation import Evaluation
from pyrovae.evidence import LogEvidence, importance, refined
from pyrovae.likelihoods.base import of_observed
from pyrovae.log_weights import ELBOEstimate, elbo_of
from pyrovae.model import VAE, LatentVariableModel
from pyrovae.noise import Stream
from pyrovae.pair import Latents, Moments, RowModel, posterior_moments
from pyrovae.refusals import Refused
from pyrovae.rows import joined
from pyrovae.turns import takes_turns

if TYPE_CHECKING:
    import pandas as pd

#: A dimension is inactive if the variance of its posterior mean over rows is less than this share of the prior's variance.
#: Burda et al. (2016) have it for the prior N(0, 1).
ACTIVE = 0.01
#: Below this rate, in nats per row, the whole code carries no information.
SILENT = 0.1
# An inference gap of half a nat per active dimension results from scales 1.8 times too wide or 2.5 times too narrow.
# Trained mean-field encoders stay below: 0.26 on held-out digits (4 active dimensions), 0.11 to 0.17 in the tests.
# Over many dimensions the limit is many nats. An encoder is therefore also poor if its weights cannot be trusted in
# half of the rows. Examples are the best mean-field encoders of linear Gaussian models. With 10 dimensions and 40
# columns, the gap is 0.4 nats and 66 % of rows are trusted. With 20 columns, these are 1.3 nats and 26 %. With 50
# dimensions and 100 columns, the gap is 7.4 nats and no row is trusted.
_GAP_BY_DIMENSION, _LEAST_GAP, _FEW = 0.5, 0.5, 0.5
# KL(q(z) ‖ P(z)) is reported above this, in nats and as a share of the rate.
_PRIOR_GAP, _PRIOR_SHARE = 0.5, 0.25
# Mutual information is at most log N. Above this share of it, the rows are too few to estimate it.
_SATURATED = 0.8
# Draws per row for the ELBO, which is a mean over draws and rows and needs few.
_BOUND_DRAWS = 100
# Draws per row for a latent whose moments have no closed form or depend on other latents.
_DRAWS = 64
# Most rows that q(z) is averaged over, and fewest draws for the mutual information.
_MOST_ROWS, _FEWEST_DRAWS = 2000, 2000
# Rows for log P(x) by ``refined``, which is used if importance sampling cannot be trusted in more than this share.
_REFINED_ROWS, _DOUBTFUL = 64, 0.1
# One column of a table determines z alone if it has more than this share of the squared gradients.
_DROWNS = 0.9
_NUMBERS_AT_ONCE = 1 << 20
_SHOWN = 12


@dataclass(frozen=True)
class Finding:
    """A finding and a remedy to try, which is empty if nothing has to be done."""

    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.what} {self.remedy}".strip()


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """The information in the latent code and the quality of the encoder; means over rows, in nats per row.

    Attributes:
        verdict: "healthy", "collapsed", "poor encoder" or "mismatched prior".
        findings: the findings in words, with remedies to try.
        dimensions: a frame with one line per latent dimension. ``rate`` is KL(Q ‖ P) in nats per row and
            ``kind`` the kind of this number. ``variance_of_mean`` is the variance over rows of the posterior
            mean, in the unit of z. It is NaN if a row has no mean, as under a Cauchy guide, or if less than two rows
            have the latent. ``active`` is whether it is above 0.01 times the prior's variance of that dimension. The
            prior's variance comes from 64 draws of the prior if the latent depends on others or has no closed form.
            Where one of the two variances does not exist, ``active`` is whether the rate is above 0.1. Kind "exact"
            is in closed form. Kind "sampled" is for latents that depend on others: E_Q[log Q(z_i | others) − log P(z_i | others)] from 64 draws. Rates
            of these two kinds sum to the rate. Kind "marginal" is for a posterior or prior that does not
            factorise: KL of the dimension's marginals, taken as Gaussians with their moments. These rates do
            not sum to the rate.
        elbo, reconstruction, rate: the mean ELBO and its two terms, ELBO = reconstruction − rate.
        mutual_information: I_q(x; z) = E[log Q(z | x) − log q(z)] with q(z) = mean over rows of Q(z | x_n). It
            measures how well z identifies its row among ``information_rows`` rows. It is at most the logarithm
            of their number, and underestimates the mutual information of a larger population.
        prior_gap: KL(q(z) ‖ P(z)), the rest of the rate: rate = mutual information + prior gap. It is
            overestimated by as much as the mutual information is underestimated.
        mutual_information_mcse, prior_gap_mcse: their standard errors.
        information_rows: number of rows that q(z) is averaged over.
        inference_gap: mean of log P(x_n) − ELBO(x_n) = KL(Q(z | x_n) ‖ P(z | x_n)).
        inference_gap_se: its standard error over rows.
        gap_method: the method of its log P(x_n): "importance", or "refined" on some of the rows if the
            importance weights cannot be trusted.
        log_evidence: log P(x_n) by importance sampling, with k-hat and verdict for every row.
        columns: for a VAE made by ``for_table`` a frame with one line per column; else None. ``gradient`` is the root mean
            square over rows of ∂ log P(x_d | z)/∂z at one draw z ~ Q(z | x). ``share`` is the column's share of all
            squares. A column with nearly all of them determines z, and training ignores the others.
    """

    verdict: str
    findings: tuple[Finding, ...]
    dimensions: pd.DataFrame
    elbo: float
    reconstruction: float
    rate: float
    mutual_information: float
    mutual_information_mcse: float
    prior_gap: float
    prior_gap_mcse: float
    information_rows: int
    inference_gap: float
    inference_gap_se: float
    gap_method: str
    log_evidence: LogEvidence
    columns: pd.DataFrame | None = None

    @property
    def active_units(self) -> int:
        """Number of active dimensions."""
        return int(self.dimensions["active"].sum())

    def pareto_k(self) -> dict[str, float]:
        """Return k-hat of the encoder's importance weights: its 5 %, 50 % and 95 % quantiles over rows and its maximum."""
        known = self.log_evidence.pareto_k[~np.isnan(self.log_evidence.pareto_k)]
        if not len(known):
            return dict.fromkeys(("5%", "50%", "95%", "max"), math.nan)
        levels = {"5%": 0.05, "50%": 0.5, "95%": 0.95, "max": 1.0}
        # Without interpolation, which would turn infinities into NaN.
        return {
            name: float(np.quantile(known, level, method="inverted_cdf")) for name, level in levels.items()
        }

    def _numbers(self) -> list[tuple[str, str, str]]:
        """Return the name, the value and a note of each number, in nats per row, then of k-hat and the verdicts."""
        counts = ", ".join(
            f"{verdict} {count}"
            for verdict, count in self.log_evidence.counts().items()
            if count or verdict != "unchecked"
        )
        k = ", ".join(f"{name} {value:.2f}" for name, value in self.pareto_k().items())
        bound = f"at most log {self.information_rows} = {math.log(self.information_rows):.3f}"
        parts = f"= reconstruction {self.reconstruction:.3f} − rate {self.rate:.3f}"
        return [
            ("ELBO", f"{self.elbo:.3f}", parts),
            (
                "mutual information",
                f"{self.mutual_information:.3f}",
                f"± {self.mutual_information_mcse:.3f}, {bound}",
            ),
            ("KL(q(z) ‖ P(z))", f"{self.prior_gap:.3f}", f"± {self.prior_gap_mcse:.3f}"),
            (
                "inference gap",
                f"{self.inference_gap:.3f}",
                f"± {self.inference_gap_se:.3f}, by {self.gap_method}",
            ),
            ("k-hat over rows", "", k),
            ("rows by verdict", "", counts),
        ]

    def _heading(self) -> tuple[str, str]:
        rows, draws = len(self.log_evidence), self.log_evidence.num_samples
        return (
            f"{self.verdict}: {activity(self)}",
            f"nats per row, over {rows} row{'s' * (rows != 1)}, {draws} draws each",
        )

    def __str__(self) -> str:
        lines = [
            *self._heading(),
            "",
            *(
                f"  {name:<22}{value:>10}   {note}" if value else f"  {name:<22}{note}"
                for name, value, note in self._numbers()
            ),
            "",
            *_table(self.dimensions),
            "",
            *([] if self.columns is None else [*_table_of_columns(self.columns), ""]),
            *(f"• {line}" for line in _wrapped(self.findings)),
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Return the findings, the numbers and all columns of the frames, for notebooks."""
        title, about = self._heading()
        grids = [pages.Grid(("", "", ""), tuple(self._numbers()), about)]
        for frame, by in ((self.dimensions, "rate"), (self.columns, "share")):
            if frame is not None:
                ranked = frame.sort_values(by, ascending=False, kind="stable")
                grids.append(pages.Grid.of(ranked, most=_SHOWN))
        return pages.summary(title, map(str, self.findings), *grids)

    def __repr__(self) -> str:
        return str(self)


def activity(found: Diagnosis) -> str:
    """Return in words how many latent dimensions are active, or why the verdict is a collapse although some are."""
    count = f"{found.active_units} of {len(found.dimensions)} latent dimensions"
    if found.verdict == "collapsed" and found.active_units:  # by the rate
        return f"rate {found.rate:.3f} nats a row, though the mean of z varies in {count}"
    return f"{count} active"


@takes_turns
def diagnose(
    pair: LatentVariableModel,
    x: Any,
    num_samples: int = 500,
    seed: int = 0,
    tile: tuple[int, int] | None = None,
    progress: bool = False,
) -> Diagnosis:
    """Look for posterior collapse, a poor encoder and a mismatched prior, and return findings with remedies.

    The rate is the information about the row plus the deviation of the aggregate posterior from the prior.
    That is, mean KL(Q(z | x_n) ‖ P(z)) = I_q(x; z) + KL(q(z) ‖ P(z)) (Hoffman and Johnson 2016). A dimension
    is active if the variance over rows of its posterior mean is above 0.01 times the prior's variance (Burda,
    Grosse and Salakhutdinov 2016). The inference gap is log P(x_n) − ELBO(x_n), the KL from encoder to posterior.

    Args:
        pair: a ``VAE`` or any ``LatentVariableModel`` with continuous latents; each is flattened.
        x: rows on dim 0, or a dict of them, as in ``log_weights``; preferably some hundred held-out rows.
        num_samples: draws per row for log P(x) and k-hat, at least 100. The ELBO uses 100.
        seed: the same seed gives the same numbers; with the same tile, too, the same bits.
        tile: (rows, samples) computed at once; None chooses it from the shapes.
        progress: show a bar, or plain lines if there is no terminal.

    Returns:
        A ``Diagnosis``; print it.

    Raises:
        TypeError, ValueError: see ``log_weights``; also if a latent is discrete, because its mean has no meaning.

    Example:
        >>> import torch, pyrovae as pv
        >>> x = (torch.rand(50, 6, generator=torch.Generator().manual_seed(0)) < 0.5).float()
        >>> found = diagnose(pv.VAE.mlp(6, latent_dim=2), x, num_samples=100)
        >>> found.verdict, found.active_units
        ('collapsed', 0)
    """
    arguments.integer("num_samples", num_samples, minimum=100)
    arguments.boolean("progress", progress)
    x = joined(x, "x")
    evaluation = Evaluation.prepare(pair, x, num_samples, seed, tile)
    frame = _dimensions(evaluation)
    bound = elbo_of(replace(evaluation, num_samples=_BOUND_DRAWS))
    evidence = importance(pair, x, num_samples, seed, tile=evaluation.tile, progress=progress)
    gap, method, known = _inference_gap(evaluation, bound, evidence)
    information = _information(evaluation)
    found = Diagnosis(
        verdict="",
        findings=(),
        dimensions=frame,
        elbo=bound.mean,
        reconstruction=float(bound.reconstruction.mean()),
        rate=float(bound.rate.mean()),
        **information,
        inference_gap=float(gap.mean()),
        inference_gap_se=float(gap.std(ddof=1) / len(gap) ** 0.5) if len(gap) > 1 else math.nan,
        gap_method=method if len(gap) == len(evidence) else f"{method} on {len(gap)} rows",
        log_evidence=evidence,
        columns=_columns(evaluation),
    )
    verdict, findings = _judge(found, known)
    return replace(found, verdict=verdict, findings=findings)


# ---------------------------------------------------------------------------------------------------------
# Findings


def _judge(found: Diagnosis, gap_is_known: bool) -> tuple[str, tuple[Finding, ...]]:
    """Return the verdict and all findings, the most serious first."""
    untrusted = _untrusted(found.log_evidence)
    active, total = found.active_units, len(found.dimensions)
    poor = not found.inference_gap <= max(_LEAST_GAP, _GAP_BY_DIMENSION * active)  # NaN and ∞ count as poor
    poor |= untrusted > _FEW and not (gap_is_known and found.inference_gap <= _LEAST_GAP)
    most = math.log(found.information_rows)  # of one row, 0
    saturated = most == 0 or found.mutual_information > _SATURATED * most
    # A rate without information is that of an encoder that ignores x.
    uninformed = active == 0 and not saturated and found.mutual_information < SILENT
    silent = uninformed or found.rate < SILENT
    mismatched = (
        not (poor or silent or saturated)  # a poor encoder's q(z) does not show whether the prior fits
        and found.prior_gap - 2 * found.prior_gap_mcse > max(_PRIOR_GAP, _PRIOR_SHARE * found.rate)
    )
    if poor:
        verdict, findings = "poor encoder", [_poor_encoder(found, silent, gap_is_known)]
    elif silent:
        verdict, findings = "collapsed", [_collapsed(found)]
    elif mismatched:
        verdict, findings = "mismatched prior", [_mismatched_prior(found)]
    else:
        verdict, findings = "healthy", [_healthy(found)]
    if saturated:
        findings.append(
            Finding(
                f"The mutual information is close to its maximum for {found.information_rows} rows, "
                f"{math.log(found.information_rows):.2f} nats. How the rest of the rate splits cannot be determined."
            )
        )
    if not silent and 0 < active < total:
        findings.append(
            Finding(
                f"{total - active} of {total} latent dimensions are unused: the ELBO prunes dimensions it does not need.",
                "A smaller latent_dim would lose nothing. If you expected more active dimensions, try kl_warmup.",
            )
        )
    if untrusted > _DOUBTFUL:
        findings.append(
            Finding(
                f"The encoder's importance weights cannot be trusted in {untrusted:.0%} of the rows.",
                'For log P(x) use log_evidence(..., method="auto"), which does not rely on the encoder alone.',
            )
        )
    if found.columns is not None and len(found.columns) > 2 and found.columns["share"].max() > _DROWNS:
        name, share = found.columns["share"].idxmax(), found.columns["share"].max()
        findings.append(
            Finding(
                f"Column {name!r} has {share:.0%} of the squared gradients that reach z: it drowns the other columns.",
                "Look for repeated values under a density with a small scale. Give the column a resolution or another "
                'family, such as families={column: "student_t"}, or leave it out.',
            )
        )
    return verdict, tuple(findings)


def _poor_encoder(found: Diagnosis, silent: bool, gap_is_known: bool) -> Finding:
    reason = (
        "The encoder ignores x, though the decoder uses z."
        if silent
        else "Its means or scales are wrong, or its family is too narrow."
    )
    return Finding(
        f"The inference gap is {'' if gap_is_known else 'at least '}{found.inference_gap:.3g} nats per row, "
        f"over {found.active_units} active dimensions. {reason}",
        "Train the encoder longer, alone if necessary; or give it more width or a richer family "
        "(encoders.FullRankNormal, encoders.Flow). evidence.gaps tells which of the two is needed. Until then "
        "the ELBO is below log P(x) by this gap.",
    )


def _collapsed(found: Diagnosis) -> Finding:
    gap = f"an inference gap of {max(found.inference_gap, 0.0):.3f}"
    what = (
        f"The code carries almost no information about x: {found.rate:.3f} nats of rate, and {gap}. "
        f"Active dimensions: {found.active_units}. Their means vary over rows, but their posteriors nearly equal the prior."
        if found.active_units
        else f"The code carries no information about x: no active dimensions, {found.rate:.3f} nats of rate, and {gap}. "
        "The decoder ignores z."
    )
    kinds = set(found.log_evidence.measure)
    peers = "IndependentGaussian or PPCA"
    if "mass" in kinds:
        peers = "IndependentBernoulli for zeros and ones, IndependentNegativeBinomial for counts, LatentClass(1) for labels"
        peers += ", IndependentGaussian for densities" if "density" in kinds else ""
    return Finding(
        what,
        f"Either the decoder's biases already describe x (compare with baselines.{peers}), "
        "or training collapsed. In that case try fit(..., kl_warmup=…) over a quarter of the epochs, a "
        "narrower decoder, a smaller fixed scale, longer training, a higher learning rate, or other initial "
        "weights.",
    )


def _mismatched_prior(found: Diagnosis) -> Finding:
    return Finding(
        f"{found.prior_gap:.3g} nats of the rate carry no information about x: the codes of all rows together "
        "are distributed unlike the prior. Samples from the prior will look worse than reconstructions.",
        "Learn the prior: priors.GaussianMixture, priors.VampPrior, priors.Flow.",
    )


def _healthy(found: Diagnosis) -> Finding:
    used = f"uses {found.active_units} dimension{'s' * (found.active_units != 1)}"
    if not found.active_units:
        used = f"has {found.rate:.2f} nats of rate per row, though no dimension's mean is known to vary"
    gap = max(found.inference_gap, 0.0)
    return Finding(f"The code {used}, and the encoder finds it: the inference gap is {gap:.2f} nats per row.")


def _table(frame: pd.DataFrame) -> Iterator[str]:
    """Yield the dimensions in order of their rate, the largest first, each with a bar."""
    ranked = frame.sort_values("rate", ascending=False, kind="stable")
    widest = max(9, *(len(str(name)) for name in ranked.index))
    yield f"  {'dimension':<{widest}}     rate  variance of mean"
    most = max(float(ranked["rate"].max()), 1e-12)
    for name, line in ranked.head(_SHOWN).iterrows():
        share = line["rate"] / most  # NaN if the rate is not known
        bar = ("█" * round(20 * share) if share > 0 else "") if line["active"] else "·"
        mark = "~" if line["kind"] == "marginal" else ""
        yield f"  {name!s:<{widest}} {line['rate']:8.3f}  {line['variance_of_mean']:16.4f}  {mark}{bar}"
    rest = ranked.iloc[_SHOWN:]
    if len(rest):
        yield f"  and {len(rest)} more, {int(rest['active'].sum())} of them active, rate {rest['rate'].sum():.3f} in all"
    if (frame["kind"] == "marginal").any():
        yield "  ~ KL of the dimension's marginals, from their moments: these do not sum to the rate"


def _table_of_columns(frame: pd.DataFrame) -> Iterator[str]:
    """Yield the columns of a table, the one with the largest gradient first, each with a bar."""
    ranked = frame.sort_values("share", ascending=False, kind="stable").head(_SHOWN)
    widest = max(6, *(len(str(name)) for name in ranked.index))
    yield f"  {'column':<{widest}} gradient  share of the squared gradients of log P(x | z) by z"
    for name, line in ranked.iterrows():
        yield f"  {name!s:<{widest}} {line['gradient']:8.3f}  {line['share']:4.0%} {'█' * round(20 * line['share'])}"


def _wrapped(findings: tuple[Finding, ...]) -> Iterator[str]:
    for finding in findings:
        yield "\n  ".join(textwrap.wrap(str(finding), width=76))


# ---------------------------------------------------------------------------------------------------------
# Numbers


def _dimensions(evaluation: Evaluation) -> pd.DataFrame:
    import pandas as pd

    blocks: list[dict[str, Moments]] = []
    for rows in evaluation.blocks():
        batch, row_noise = evaluation.part(rows), evaluation.noise(Stream.DIAGNOSE, rows=rows)
        count = _DRAWS
        with evaluation.pair.evaluating(), noise.seeded(row_noise.seed, batch["x"].device):
            blocks.append(posterior_moments(evaluation.model, batch, count, row_noise))
    frames = []
    for name in evaluation.structure.latents:
        found = [block[name] for block in blocks]
        mean, error, rate, prior, lacks = (
            torch.cat([getattr(f, field) for f in found])
            for field in ("mean", "error", "rate", "prior_variance", "lacks")
        )
        number = (~lacks).sum(dim=0)  # of rows that have this entry

        def total(value: Tensor, lacks: Tensor = lacks) -> Tensor:
            return value.masked_fill(lacks, 0.0).sum(dim=0)

        # The means are themselves estimates, whose errors inflate the variance.
        variance = total((mean - total(mean) / number) ** 2) / (number - 1) - total(error) / number
        variance = variance.clamp(min=0).masked_fill(number < 2, math.nan)
        unit, each = total(prior) / number, rate.mean(dim=0)
        known = variance.isfinite() & unit.isfinite()
        active = torch.where(known, variance > ACTIVE * unit, each > SILENT)
        width = mean.shape[1]
        scalar = width == 1 and not evaluation.structure.event_dims[name]
        frames.append(
            pd.DataFrame(
                {
                    "rate": each.cpu().numpy(),
                    "kind": max(f.kind for f in found),  # "sampled" if any block is
                    "variance_of_mean": variance.cpu().numpy(),
                    "active": active.cpu().numpy(),
                },
                index=[name] if scalar else [f"{name}[{i}]" for i in range(width)],
            )
        )
    return pd.concat(frames).rename_axis("dimension")


def _columns(evaluation: Evaluation) -> pd.DataFrame | None:
    """Return how strongly each column of a table moves z, or None if the pair has no table."""
    import pandas as pd

    vae = evaluation.pair
    if not isinstance(vae, VAE) or vae.table is None:
        return None
    batch = evaluation.part(_some_rows(evaluation, _MOST_ROWS))
    x = batch["x"]
    observed = batch.get("observed", torch.ones_like(x, dtype=torch.bool))
    seeded = noise.seeded(noise.derive(evaluation.seed, Stream.DIAGNOSE), x.device)
    with vae.evaluating(), seeded, torch.enable_grad():
        z = vae.encode(x, observed).sample().requires_grad_()
        fn, x = of_observed(vae.likelihood(z), x, observed)
        terms = fn.base_dist.log_prob(x).sum(dim=0)
        each = [torch.autograd.grad(term, z, retain_graph=True)[0].square().sum() for term in terms]
    squares = torch.stack(each).double().cpu().numpy()
    return pd.DataFrame(
        {
            "family": [column.family for column in vae.table.columns],
            "gradient": (squares / len(x)) ** 0.5,
            "share": squares / max(squares.sum(), 1e-300),
        },
        index=frames.own_labels(vae.table.names).rename("column"),
    )


def _inference_gap(
    evaluation: Evaluation, bound: ELBOEstimate, evidence: LogEvidence
) -> tuple[np.ndarray, str, bool]:
    """Return log P(x_n) − ELBO(x_n), its method, and whether it is trusted in at least half of the rows.

    If fewer rows are trusted, the value is a lower bound of the gap. Only some of the rows are used if importance weights cannot be
    trusted.
    """
    untrusted = _untrusted(evidence)
    plain = evidence.estimate - bound.estimate, "importance", bool(untrusted <= _FEW)
    if untrusted <= _DOUBTFUL:
        return plain
    chosen = _some_rows(evaluation, _REFINED_ROWS)
    try:
        better = refined(evaluation.pair, evaluation.part(chosen), seed=evaluation.seed)
    except Refused:  # a latent on a space in which no method can move draws
        return plain
    known = _untrusted(better) <= _FEW
    return better.estimate - bound.estimate[chosen.cpu().numpy()], "refined", known


def _untrusted(evidence: LogEvidence) -> float:
    """Return the share of rows with a reason not to trust their number; that no check was possible is none."""
    return float(np.isin(evidence.verdict, ("more samples", "another method")).mean())


def _information(evaluation: Evaluation) -> dict[str, Any]:
    """Return the mutual information and KL(q(z) ‖ P(z)), with q(z) the mean of Q(z | x_m) over rows m."""
    model = evaluation.model
    rows = _some_rows(evaluation, _MOST_ROWS)
    part = evaluation.of_rows(rows, noise.derive(evaluation.seed, Stream.DIAGNOSE), 1)
    per_row = max(1, _FEWEST_DRAWS // len(part))
    latents: dict[str, list[Tensor]] = {name: [] for name in model.structure.latents}
    own, prior = [], []
    for block in part.blocks():
        batch, row_noise = part.part(block), part.noise(Stream.TILE, rows=block)
        with model.pair.evaluating(), noise.seeded(row_noise.seed, batch["x"].device):
            z, log_q = model.propose(batch, per_row, row_noise)
            log_prior = model.log_joint(batch, z).prior
        own.append(log_q.flatten())
        prior.append(log_prior.flatten())
        for name, value in z.items():
            latents[name].append(model.rows_second(name, value).flatten(0, 1))
    draws = {name: torch.cat(values) for name, values in latents.items()}
    log_aggregate = _log_aggregate(part, draws)
    log_q, log_prior = torch.cat(own), torch.cat(prior)
    information, gap = log_q - log_aggregate, log_aggregate - log_prior
    error = len(log_q) ** -0.5
    return {
        "mutual_information": float(information.mean()),
        "mutual_information_mcse": float(information.std()) * error,
        "prior_gap": float(gap.mean()),
        "prior_gap_mcse": float(gap.std()) * error,
        "information_rows": len(part),
    }


def _log_aggregate(evaluation: Evaluation, draws: Latents) -> Tensor:
    """Return log q(z_k) = log mean_m Q(z_k | x_m) over all rows m, (draws,), for ``draws`` of shape (draws, rest...)."""
    model, structure = evaluation.model, evaluation.structure
    num_draws = len(draws[structure.latents[0]])
    dim = sum(value[0].numel() for value in draws.values())
    width = evaluation.tile[1] if not structure.vectorised["guide"] else 128
    # A vectorised guide encodes a row once for all samples; another guide encodes it for every sample.
    widest = max(structure.widest, width * dim) if structure.vectorised["guide"] else width * structure.widest
    height = max(1, _NUMBERS_AT_ONCE // widest)
    total = torch.full((num_draws,), -math.inf, dtype=torch.float64, device=evaluation.batch["x"].device)
    with model.pair.evaluating():
        for row in range(0, len(evaluation), height):
            batch = evaluation.part(slice(row, row + height))
            for draw in range(0, num_draws, width):
                here = slice(draw, draw + width)
                z = {name: _each_row(model, name, v[here], len(batch["x"])) for name, v in draws.items()}
                log_q = model.log_proposal(batch, z)  # (draws, rows)
                total[here] = torch.logaddexp(total[here], torch.logsumexp(log_q, dim=1))
    return total - math.log(len(evaluation))


def _some_rows(evaluation: Evaluation, most: int) -> Tensor:
    """Return the indices of all rows, or of ``most`` of them chosen at random, in order."""
    device = evaluation.batch["x"].device
    if len(evaluation) <= most:
        return torch.arange(len(evaluation), device=device)
    generator = torch.Generator().manual_seed(noise.derive(evaluation.seed, Stream.ROW_ORDER))
    return torch.randperm(len(evaluation), generator=generator)[:most].sort().values.to(device)


def _each_row(model: RowModel, name: str, value: Tensor, num_rows: int) -> Tensor:
    """Return (samples, rest...) as (samples, plates..., event...), the same for each of ``num_rows`` rows."""
    return model.rows_back(name, value[:, None].expand(-1, num_rows, *value.shape[1:]))
