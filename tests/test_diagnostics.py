"""The numeric core against scipy, arviz and closed forms."""

import math

import numpy as np
import pytest
import torch
from arvizs import MODERN, psislw
from scipy.special import logsumexp

from pyrovae import diagnostics
from pyrovae.diagnostics import Accumulator


def weights(num_samples, num_rows=5, spread=1.5, seed=0, offset=-545.0):
    generator = torch.Generator().manual_seed(seed)
    return offset + spread * torch.randn(num_samples, num_rows, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("num_samples", [1, 2, 10, 1000])
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
def test_log_mean_exp_is_scipys(num_samples, spread):
    lw = weights(num_samples, spread=spread)
    expected = logsumexp(lw.numpy(), axis=0) - math.log(num_samples)
    np.testing.assert_allclose(diagnostics.log_mean_exp(lw), expected, rtol=0, atol=1e-11)


def test_effective_sample_size_error_and_bias_are_their_formulas():
    lw = weights(200)
    w = torch.exp(lw - lw.max(dim=0).values)
    ess = w.sum(0) ** 2 / (w**2).sum(0)
    torch.testing.assert_close(diagnostics.ess(lw), ess)
    torch.testing.assert_close(diagnostics.mcse(lw), (1 / ess - 1 / 200).sqrt())
    cv2 = w.var(0, correction=0) / w.mean(0) ** 2
    torch.testing.assert_close(diagnostics.Accumulator.of(lw).bias(), -cv2 / 400)


def test_one_draw_says_nothing_about_its_error():
    lw = weights(1)
    assert diagnostics.mcse(lw).isnan().all()
    assert diagnostics.Accumulator.of(lw).bias().isnan().all()
    assert diagnostics.pareto_k(lw).isnan().all()


def test_zero_weights_are_weights():
    lw = weights(100, 3)
    lw[::2, 1] = -math.inf
    lw[:, 2] = -math.inf
    expected = logsumexp(lw.numpy()[:, :2], axis=0) - math.log(100)
    np.testing.assert_allclose(diagnostics.log_mean_exp(lw)[:2], expected)
    assert diagnostics.log_mean_exp(lw)[2] == -math.inf
    assert diagnostics.ess(lw)[2] == 0
    assert diagnostics.pareto_k(lw)[2].isnan()


def test_float32_weights_are_summed_in_float64():
    """5000 float32 weights near −545: a float32 log-sum-exp is off by 4e-4 (PITFALLS 8)."""
    lw = weights(5000, 3).float()
    expected = logsumexp(lw.double().numpy(), axis=0) - math.log(5000)
    np.testing.assert_allclose(diagnostics.log_mean_exp(lw), expected, rtol=0, atol=1e-10)
    assert diagnostics.log_mean_exp(lw).dtype == torch.float64


@pytest.mark.parametrize("height", [300, 7])
def test_tiles_in_any_order_give_the_same_bits(height):
    lw = weights(1000, spread=3.0)
    tiles = lw.split(height)
    reference, shuffled = (Accumulator(1000, 5, len(tiles)) for _ in range(2))
    order = list(range(len(tiles)))
    for index in order:
        reference.add(index, tiles[index])
    for index in order[1::2] + order[::2]:
        shuffled.add(index, tiles[index])
    for quantity in ("log_mean_exp", "ess", "mcse", "bias", "pareto_k"):
        assert torch.equal(getattr(reference, quantity)(), getattr(shuffled, quantity)())
    torch.testing.assert_close(reference.log_mean_exp(), diagnostics.log_mean_exp(lw), rtol=0, atol=1e-12)
    assert torch.equal(reference.pareto_k(), diagnostics.pareto_k(lw))


def test_a_tile_of_zero_weights_changes_nothing_but_the_count():
    lw = weights(100, 2)
    accumulator = Accumulator(150, 2, 2)
    accumulator.add(0, torch.full((50, 2), -math.inf))
    accumulator.add(1, lw)
    expected = diagnostics.log_mean_exp(lw) + math.log(100 / 150)
    torch.testing.assert_close(accumulator.log_mean_exp(), expected)


@pytest.mark.parametrize("num_samples", [25, 26, 100, 1000, 5001])
@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0, 10.0])
def test_pareto_k_is_arvizs_on_the_same_weights(num_samples, spread):
    lw = weights(num_samples, 4, spread=spread)
    _, expected = psislw(lw.numpy().T)
    np.testing.assert_allclose(diagnostics.pareto_k(lw), expected, rtol=0, atol=1e-6)


@pytest.mark.skipif(MODERN, reason="arviz 1.x fits ties with the cutoff as exceedances of 0")
def test_pareto_k_with_ties_at_the_cutoff_is_arvizs():
    lw = weights(400, 6, spread=2.0).mul(2).round().div(2)
    _, expected = psislw(lw.numpy().T)
    np.testing.assert_allclose(diagnostics.pareto_k(lw), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [0.7, 0.9, 0.95])
def test_pareto_k_of_a_narrow_normal_is_its_tail_index(scale):
    """Target N(0, 1), proposal N(0, s²): k = 1 − s², and not its negative (PITFALLS 6)."""
    generator = torch.Generator().manual_seed(0)
    ks = []
    for _ in range(10):
        z = scale * torch.randn(100_000, 10, generator=generator, dtype=torch.float64)
        ks.append(diagnostics.pareto_k(-0.5 * z**2 + 0.5 * (z / scale) ** 2))
    assert abs(float(torch.cat(ks).mean()) - (1 - scale**2)) < 0.03


def test_pareto_k_at_the_edges():
    assert diagnostics.pareto_k(weights(24)).isnan().all()
    assert (diagnostics.pareto_k(torch.full((100, 2), -3.0)) == -math.inf).all()
    rounding = -545 + 1e-12 * weights(100, offset=0.0)
    assert (diagnostics.pareto_k(rounding, resolution=1e-9) == -math.inf).all()
    two_values = torch.zeros(100, 1)
    two_values[:3] = 5.0
    assert diagnostics.pareto_k(two_values).isnan().all()
    collapsed = torch.full((100, 1), -math.inf)
    collapsed[:3, 0] = torch.tensor([0.0, -1.0, -2.0])
    assert diagnostics.pareto_k(collapsed).item() == math.inf


def test_draws_that_are_counted_alone_have_their_own_tail():
    """Of 600 draws in three tiles, 20, 130 and 400 are counted in three rows; the results are those of these draws alone."""
    generator = torch.Generator().manual_seed(0)
    log_weights = 2 * torch.randn(600, 3, generator=generator, dtype=torch.float64)
    counts = (20, 130, 400)
    counted = torch.stack([torch.randperm(600, generator=generator) < count for count in counts], dim=1)
    some = diagnostics.Accumulator(600, 3, 3)
    for tile in range(3):
        here = slice(200 * tile, 200 * (tile + 1))
        some.add(tile, log_weights[here], counted[here])
    for row, count in enumerate(counts):
        alone = diagnostics.Accumulator.of(log_weights[counted[:, row], row][:, None])
        assert torch.equal(some.counted[row], torch.tensor(float(count)).double())
        for name in ("pareto_k", "tail_error", "ess"):
            expected, found = getattr(alone, name)()[0], getattr(some, name)()[row]
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12, equal_nan=True)


def test_weights_that_differ_by_rounding_have_no_tail():
    """A Pareto tail fitted to rounding errors can have any shape: an error of 10¹⁵ nats beside one of 0.02."""
    heavy = diagnostics.Accumulator.of(4 * weights(256, offset=0.0))
    assert (heavy.tail_error() > 0).any()
    assert (heavy.tail_error(resolution=1e3) == 0).all()
    assert (heavy.pareto_k(resolution=1e3) == -math.inf).all()


def test_threshold_follows_the_number_of_draws():
    assert diagnostics.k_threshold(100) == pytest.approx(0.5)
    assert diagnostics.k_threshold(1000) == pytest.approx(2 / 3)
    assert diagnostics.k_threshold(10**6) == 0.7
    assert diagnostics.k_threshold(1) == -math.inf


def test_shapes_are_refused_by_name():
    with pytest.raises(ValueError, match=r"log_weights: expected shape \(samples, rows\)"):
        diagnostics.ess(torch.zeros(5))
