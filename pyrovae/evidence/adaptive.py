"""Adapts a mixture of Gaussians to the posterior of every row: for bent, heavy-tailed and multimodal posteriors.

This is adaptive importance sampling with general mixtures (Cappé, Douc, Guillin, Marin and Robert 2008). Each round draws
from the mixture and weighs all draws so far against all mixtures so far (Cornuet, Marin, Mira and Robert 2012). It puts
new components where the weights are largest, and then makes steps of weighted expectation maximisation. Encoder and
prior keep their share of the draws. The draws only choose the mixture; an answer needs fresh ones.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence

import torch
from torch import Tensor

from pyrovae.evidence.gaussians import Hints
from pyrovae.evidence.posterior import Fit, Gaussian, Posterior, total
from pyrovae.evidence.refined import defended
from pyrovae.row_noise import RowNoise, interval_of

#: Rounds, draws of each, and components.
ROUNDS, DRAWS, COMPONENTS = 3, 160, 12
_EM_STEPS = 3
# Nats below the highest hint at which hints are no components; half a nat is added for each dimension.
_LOWEST = 5.0
_NEW = 2  # components that a round may add
_NARROWER = 0.5  # standard deviations of a new component, in those of the component that it is near
# The largest weights are raised to a power below one until so many draws per dimension are effective.
_EFFECTIVE = 2.0
# Degrees of freedom of widened components. An even number, because chi-squared is then a sum of exponentials.
_FREEDOM = 6


class Cloud(Fit):
    """Σ_c w_c N(loc_c, tril_c tril_cᵀ) for every row, or of Student's t with ``freedom`` degrees of freedom if not zero.

    ``loc`` has shape (rows, components, dim), ``tril`` (rows, components, dim, dim), and ``log_share`` holds log w,
    (rows, components); −∞ marks an absent component.
    """

    def __init__(
        self, loc: Tensor, tril: Tensor, log_share: Tensor, dtype: torch.dtype, freedom: int = 0
    ) -> None:
        self.loc, self.tril, self.log_share = loc, tril, log_share
        self.dtype, self.freedom = dtype, freedom

    @classmethod
    def around(cls, fits: Sequence[Gaussian], hints: Hints | None = None) -> Cloud:
        """Return a mixture of fits, and of the hints that are farthest from them if they are high enough to matter."""
        free = COMPONENTS - len(fits)
        loc, tril = (
            torch.stack([getattr(fit, name) for fit in [*fits, *[fits[0]] * free]], dim=1)
            for name in ("loc", "tril")
        )
        log_share = torch.full(loc.shape[:2], -math.inf, dtype=loc.dtype, device=loc.device)
        log_share[:, : len(fits)] = 0.0
        if hints is not None:
            u, row = hints.u.double(), torch.arange(len(loc), device=loc.device)
            high = hints.log_joint > hints.log_joint.amax(dim=0) - _LOWEST - u.shape[-1] / 2
            distance = torch.full_like(hints.log_joint, math.inf)
            for place in range(COMPONENTS):
                if place >= len(fits):
                    farthest = distance.masked_fill(~high, -math.inf).argmax(dim=0)
                    loc[:, place] = u[farthest, row]
                    log_share[:, place] = torch.where(high[farthest, row], 0.0, -math.inf)
                apart = (u - loc[:, place]) / fits[0].spread
                distance = torch.minimum(distance, apart.square().sum(dim=-1))
        return cls(loc, tril, log_share.log_softmax(dim=-1), fits[0].dtype)

    def draw(self, num_samples: int, noise: RowNoise) -> Tensor:
        rows, _, dim = self.loc.shape
        shares = noise.uniform(num_samples, dtype=torch.float64).T
        label = interval_of(shares, self.log_share.exp().cumsum(-1))  # (rows, samples)
        u = noise.normal(num_samples, dim, dtype=torch.float64)
        if self.freedom:
            halves = noise.uniform(num_samples, self.freedom // 2, dtype=torch.float64).log().sum(-1)
            u = u * (-2 * halves / self.freedom).rsqrt()[..., None]
        row = torch.arange(rows, device=label.device)[:, None]
        found = self.loc[row, label] + (self.tril[row, label] @ u.movedim(1, 0)[..., None])[..., 0]
        return found.movedim(0, 1).to(self.dtype)

    def log_density(self, u: Tensor, log_prior: Tensor) -> Tensor:
        return torch.logsumexp(self.each_log_density(u), dim=0)

    def each_log_density(self, u: Tensor) -> Tensor:
        """Return log of share times density of every component, (components, samples, rows), float64."""
        samples, rows, dim = u.shape
        eye = torch.eye(dim, dtype=self.tril.dtype, device=u.device)
        inverse = torch.linalg.solve_triangular(self.tril, eye, upper=False)  # (rows, components, dim, dim)
        centre = (inverse @ self.loc[..., None]).flatten(1, 2)
        whitened = (
            inverse.flatten(1, 2) @ u.double().permute(1, 2, 0) - centre
        )  # (rows, components · dim, samples)
        square = whitened.square().view(rows, -1, dim, samples).sum(dim=2)
        constant = self.log_share - self.tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        if self.freedom:
            half = (self.freedom + dim) / 2
            constant = constant + math.lgamma(half) - math.lgamma(self.freedom / 2)
            constant = constant - dim / 2 * math.log(self.freedom * math.pi)
            found = constant[..., None] - half * torch.log1p(square / self.freedom)
        else:
            found = (constant - dim / 2 * math.log(2 * math.pi))[..., None] - square / 2
        return found.permute(1, 2, 0)

    @property
    def kind(self) -> Hashable:
        return "Cloud", self.loc.shape[1], self.freedom

    @property
    def tensors(self) -> list[Tensor]:
        return [self.loc, self.tril, self.log_share]

    def made(self, tensors: Iterator[Tensor]) -> Cloud:
        return Cloud(next(tensors), next(tensors), next(tensors), self.dtype, self.freedom)

    def widened(self, factor: float) -> Cloud:
        """Return the mixture of Student's t at the same places, with scales multiplied by ``factor``."""
        return Cloud(self.loc, factor * self.tril, self.log_share, self.dtype, _FREEDOM)

    @property
    def spread(self) -> Tensor:
        """The standard deviations of a component, by root mean square, (rows, dim)."""
        return (self.log_share.exp()[..., None] * self.tril.square().sum(dim=-1)).sum(dim=1).sqrt()


def adaptation_cost() -> int:
    """Return the decoder evaluations of ``adapted`` per row; draws of the prior run the model twice."""
    return ROUNDS * (DRAWS + DRAWS // 10)


def adapted(posterior: Posterior, cloud: Cloud, noise: RowNoise) -> Cloud:
    """Return the mixture after all rounds of adaptation, which cost ``adaptation_cost``."""
    drawn, joints, fixed, mixtures = [], [], [], []
    for _ in range(ROUNDS):
        mixture = defended(posterior, [cloud], DRAWS)
        shares = [math.log(count / DRAWS) for count in mixture.counts]
        parts = zip(mixture.components, mixture.counts, strict=True)
        u = torch.cat([component.draw(count, noise) for component, count in parts])
        off = u.isnan().any(dim=-1)  # of the prior's support
        u = torch.where(off[..., None], 0.0, u)
        joint = posterior.log_joint(u)
        drawn.append(u)
        joints.append(torch.where(off, -math.inf, total(joint)))
        fixed.append(torch.logaddexp(shares[-2] + posterior.log_encoder(u), shares[-1] + joint.prior))
        mixtures.append(mixture.components[:2])
        every, log_joint = torch.cat(drawn), torch.cat(joints)
        clouds = [
            share + component.log_density(every, log_joint) - math.log(len(mixtures))
            for components in mixtures
            for share, component in zip(shares, components, strict=False)
        ]
        log_q = torch.logsumexp(torch.stack([torch.cat(fixed), *clouds]), dim=0)
        log_weight = (log_joint - log_q).nan_to_num(nan=-math.inf, posinf=-math.inf, neginf=-math.inf)
        cloud = _improved(cloud, every.double(), log_weight)
    return cloud


def _improved(cloud: Cloud, u: Tensor, log_weight: Tensor) -> Cloud:
    """Return the mixture with new components where the weights are largest, after EM on draws (samples, rows, dim)."""
    cloud = _extended(cloud, u, log_weight)
    dim = u.shape[-1]
    weight = _tempered(log_weight, _EFFECTIVE * dim)
    pseudo = dim + 2.0  # draws that the covariance before counts for
    for _ in range(_EM_STEPS):
        each = cloud.each_log_density(u)
        part = weight * (each - torch.logsumexp(each, dim=0)).exp().nan_to_num(
            nan=0.0
        )  # (components, samples, rows)
        share = part.sum(dim=1)
        effective = (share**2 / (part**2).sum(dim=1).clamp(min=1e-300)).T[..., None]  # (rows, components, 1)
        loc, tril = [], []
        for c in range(COMPONENTS):
            own = part[c] / share[c].clamp(min=1e-300)
            mean = torch.einsum("sr,srd->rd", own, u)
            mean = (effective[:, c] * mean + cloud.loc[:, c]) / (effective[:, c] + 1)
            apart = u - mean
            covariance = torch.einsum("sr,srd,sre->rde", own, apart, apart)
            before = cloud.tril[:, c] @ cloud.tril[:, c].mT
            many = effective[:, c, :, None]
            covariance = (many * covariance + pseudo * before) / (many + pseudo)
            loc.append(mean)
            tril.append(torch.linalg.cholesky_ex(covariance))
        failed = torch.stack([info > 0 for _, info in tril], dim=1)[..., None, None]
        new = torch.stack([lower for lower, _ in tril], dim=1)
        cloud = Cloud(
            torch.stack(loc, dim=1),
            torch.where(failed, cloud.tril, new),
            share.T.log().log_softmax(dim=-1),
            cloud.dtype,
        )
    return cloud


def _extended(cloud: Cloud, u: Tensor, log_weight: Tensor) -> Cloud:
    """Return the mixture with components at the draws of largest weight, in place of its rarest."""
    loc, tril, log_share = cloud.loc.clone(), cloud.tril.clone(), cloud.log_share.clone()
    row = torch.arange(len(loc), device=loc.device)
    share = log_weight.softmax(dim=0)
    near = cloud.each_log_density(u).argmax(dim=0)  # (samples, rows)
    for at in log_weight.topk(_NEW, dim=0).indices:
        place = log_share.argmin(dim=-1)
        better = share[at, row].log() > log_share[row, place]
        place, chosen = place[better], row[better]
        loc[chosen, place] = u[at[better], chosen]
        tril[chosen, place] = _NARROWER * cloud.tril[chosen, near[at[better], chosen]]
        log_share[chosen, place] = -math.log(COMPONENTS)
    return Cloud(loc, tril, log_share.log_softmax(dim=-1), cloud.dtype)


def _tempered(log_weight: Tensor, effective: float) -> Tensor:
    """Return weights that sum to one, (samples, rows), raised to the largest power up to one that leaves enough effective."""
    finite = log_weight.clamp(min=-1e300)
    low, high = torch.zeros_like(finite[0]), torch.ones_like(finite[0])
    power = high
    for _ in range(15):
        weight = (power * finite).softmax(dim=0)
        enough = 1 / (weight**2).sum(dim=0) >= effective
        low, high = torch.where(enough, power, low), torch.where(enough, high, power)
        power = (low + high) / 2
    return (low * finite).softmax(dim=0)
