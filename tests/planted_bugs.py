"""Plants mistakes in a copy of the package, one at a time, and runs the tests that have to catch them.

    python tests/planted_bugs.py [name …]

Each mistake is a line of the source with another put in its place. A child process is forked for each,
from a parent that has imported the libraries but neither the package nor a single kernel, so that a
mistake costs its tests and not an import of torch. Caught is what makes a test itself fail, not its fixtures; that
the same tests pass where nothing is planted, the suite shows.
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "pyrovae"


class Bug(NamedTuple):
    """A mistake: in which file, which line, what stands there instead, and which tests catch it."""

    file: str
    line: str
    planted: str
    tests: str  # file::keyword expression


BUGS = {
    "entries that rows lack without a density": Bug(
        "pair/coordinates.py",
        "normal = torch.where(place.absent, normal, 0.0)",
        "normal = torch.where(place.absent, 0.0, 0.0)",
        "test_masks.py::what_the_rows_have and steps and refined",
    ),
    "masks of one part let through": Bug(
        "pair/masks.py",
        "if same(*both):",
        "if True:",
        "test_masks.py::one_part_alone",
    ),
    "guides that are cut off trusted": Bug(
        "evidence/reach.py",
        "if evaluation.structure.reaches:",
        "if True:",
        "test_reach.py::no_row_is_trusted and importance",
    ),
    "rows that depend on others let through": Bug(
        "pair/on_data.py",
        "if not bool((apart > tolerance).any()):",
        "if True:",
        "test_on_data.py::depend_on_others and maximum",
    ),
    "models that read their own columns let through": Bug(
        "pair/dependence.py",
        "if len(own):",
        "if False:",
        "test_dependence.py::read_what_they_score and its",
    ),
    "circles of sites let through": Bug(
        "pair/dependence.py",
        "if circle is not None:",
        "if False:",
        "test_dependence.py::read_what_they_score and ring",
    ),
    "columns numbered from zero": Bug(
        "pair/dependence.py",
        "numbers = torch.arange(1, x.shape[1] + 1, device=x.device)",
        "numbers = torch.arange(0, x.shape[1], device=x.device)",
        "test_dependence.py::columns_of_every_site",
    ),
    "draws on a bound weighed": Bug(
        "pair/row_model.py",
        "log_q = torch.where(self._at_edge(latents), math.inf, log_q)",
        "pass",
        "test_reach.py::on_a_bound_is_not_trusted",
    ),
    "rows without probability unsaid": Bug(
        "evidence/result.py",
        '"P(x, z) is 0 at every draw": torch.isneginf(columns.estimate),',
        "",
        "test_reach.py::without_probability_says_so and importance",
    ),
    "densities off their support": Bug(
        "supports.py",
        "return found if inside is None else torch.where(inside, found, -math.inf)",
        "return found",
        "test_supports.py::everywhere and exponential",
    ),
    "jumps of the integrand forgotten": Bug(
        "evidence/quadrature.py",
        "known, doubling + jump[waiting] + _BEYOND * rim[waiting] + rounding, math.inf",
        "known, doubling + _BEYOND * rim[waiting] + rounding, math.inf",
        "test_reach.py::across_a_jump",
    ),
    "mean of logs": Bug(
        "evidence/importance.py",
        "weights.add(number, terms.log_weights)",
        "weights.add(number, (w := terms.log_weights).mean(0).expand_as(w))",
        "test_evidence.py::streaming",
    ),
    "divided by K − 1": Bug(
        "diagnostics.py",
        "return offset + first.log() - math.log(self.num_samples)",
        "return offset + first.log() - math.log(max(self.num_samples - 1, 1))",
        "test_diagnostics.py::scipys",
    ),
    "sign of log Q": Bug(
        "log_weights.py",
        "weights = self.likelihood + self.prior - self.proposal",
        "weights = self.likelihood + self.prior + self.proposal",
        "test_evidence.py::exact_posterior",
    ),
    "prior forgotten": Bug(
        "log_weights.py",
        "weights = self.likelihood + self.prior - self.proposal",
        "weights = self.likelihood - self.proposal",
        "test_evidence.py::exact_posterior",
    ),
    "scale of the prior": Bug(
        "priors.py",
        "torch.ones(latent_dim)",
        "2 * torch.ones(latent_dim)",
        "test_priors_and_encoders.py::their_normals",
    ),
    "a mixture without its weights": Bug(
        "priors.py",
        "dist.Categorical(logits=self.logits)",
        "dist.Categorical(logits=0 * self.logits)",
        "test_priors_and_encoders.py::sum_of_its_components",
    ),
    "a VampPrior with an encoder of its own": Bug(
        "priors.py",
        'self.__dict__["encoder"] = ',
        "self.encoder = ",
        "test_priors_and_encoders.py::vamp_prior_shares",
    ),
    "a diagonal that is no logarithm": Bug(
        "encoders.py",
        "torch.diag_embed(log_diagonal.exp())",
        "torch.diag_embed(log_diagonal.exp().square())",
        "test_priors_and_encoders.py::triangle",
    ),
    "sign of a flow's Jacobian": Bug(
        "flows.py",
        "return self.base.log_prob(noise) + log_det",
        "return self.base.log_prob(noise) - log_det",
        "test_priors_and_encoders.py::change_variables",
    ),
    "a draw remembered without its graph": Bug(
        "flows.py",
        "if value is z and with_graph == torch.is_grad_enabled():",
        "if value is z:",
        "test_priors_and_encoders.py::draw_without_gradients",
    ),
    "validation left off by zuko": Bug(
        "flows.py",
        "set_default_validate_args(validates)",
        "set_default_validate_args(False)",
        "test_priors_and_encoders.py::checks_of_distributions",
    ),
    "kinds of outputs interleaved": Bug(
        "networks.py",
        "kinds.movedim(1, 3)",
        "kinds.movedim(1, 4)",
        "test_priors_and_encoders.py::kinds_of_outputs",
    ),
    "arguments of a base class": Bug(
        "registry.py", "if type(self) is cls:", "if True:", "test_priors_and_encoders.py::subclass_records"
    ),
    "a latent dropped": Bug(
        "pair/contract.py",
        'latents = tuple(name for name, site in model.items() if not site["is_observed"])',
        'latents = tuple(name for name, site in model.items() if not site["is_observed"])[:1]',
        "test_pair.py::by_hand or is_the_exact_one",
    ),
    "N/B forgotten": Bug(
        "pair/running.py",
        'scale = num_rows / len(batch["x"])',
        "scale = 1.0",
        "test_training.py::counts_every_row",
    ),
    "N/B upside down": Bug(
        "pair/running.py",
        'scale = num_rows / len(batch["x"])',
        'scale = len(batch["x"]) / num_rows',
        "test_training.py::counts_every_row",
    ),
    "sums in float32": Bug(
        "diagnostics.py",
        "lw = log_weights.to(torch.float64)",
        "lw = log_weights.float()",
        "test_diagnostics.py::float32",
    ),
    "site sums in float32": Bug(
        "pair/running.py",
        "term.sum(others, dtype=torch.float64) if others else term.double()",
        "log_prob.float().sum(others) if others else log_prob.float()",
        "test_evidence.py::exact_posterior",
    ),
    "wrong plate dim": Bug(
        "pair/running.py",
        "keep = {*range(lead), term.dim() + structure.data_dim[name]}",
        "keep = {*range(lead), term.dim() - 1}",
        "test_pair.py::by_hand or is_the_exact_one",
    ),
    "rows summed with the batch": Bug(
        "pair/running.py",
        "keep = {*range(lead), term.dim() + structure.data_dim[name]}",
        "keep = {*range(lead)}",
        "test_evidence.py::weighed_by_itself",
    ),
    "rate with the wrong sign": Bug(
        "log_weights.py",
        "for term in (terms.likelihood, terms.proposal - terms.prior, terms.log_weights)",
        "for term in (terms.likelihood, terms.prior - terms.proposal, terms.log_weights)",
        "test_evidence.py::closed_form",
    ),
    "half the KL": Bug(
        "log_weights.py",
        "for term in (terms.likelihood, terms.proposal - terms.prior, terms.log_weights)",
        "for term in (terms.likelihood, 0.5 * (terms.proposal - terms.prior), terms.log_weights)",
        "test_evidence.py::closed_form",
    ),
    "KL weight on the likelihood too": Bug(
        "pair/running.py",
        'if not msg["is_observed"] and not site_is_subsample(msg):',
        "if not site_is_subsample(msg):",
        "test_training.py::kl_weight",
    ),
    "k-hat of the smallest weights": Bug(
        "diagnostics.py",
        "self._top = pool.topk(len(self._top), dim=0, sorted=True).values",
        "self._top = pool.topk(len(self._top), dim=0, largest=False).values",
        "test_diagnostics.py::narrow_normal",
    ),
    "k-hat of a tail one too long": Bug(
        "diagnostics.py",
        "length = min(num_samples, tail_length(num_samples) + 1)",
        "length = min(num_samples, tail_length(num_samples) + 2)",
        "test_diagnostics.py::arvizs",
    ),
    "padding of the last tile counted": Bug(
        "log_weights.py",
        "n = kept.sum(dim=0)",
        "n = 0 * kept.sum(dim=0) + evaluation.tile[1]",
        "test_evidence.py::closed_form",
    ),
    "error without 1/K": Bug(
        "diagnostics.py",
        "within = (second[tiles].sum(dim=0) - first[tiles].sum(dim=0) ** 2 / count).clamp(min=0)",
        "within = second[tiles].sum(dim=0)",
        "test_diagnostics.py::formulas",
    ),
    "sign of the bias": Bug(
        "diagnostics.py",
        "return -(self.mcse() ** 2) / 2",
        "return (self.mcse() ** 2) / 2",
        "test_diagnostics.py::formulas",
    ),
    "interval without the bias": Bug(
        "evidence/result.py",
        "estimate + half - np.minimum(bias, 0.0)",
        "estimate + half",
        "test_evidence.py::carries",
    ),
    "bias averaged out over rows": Bug(
        "evidence/result.py",
        "return float(self.bias.mean())",
        "return float(self.bias.mean() / len(self) ** 0.5)",
        "test_statistical.py::total",
    ),
    "mask forgotten": Bug(
        "pair/running.py",
        'return scale_and_mask(found, mask=site["mask"])',
        "return found",
        "test_pair.py::by_hand or is_the_exact_one",
    ),
    "the same noise in every tile": Bug(
        "log_weights.py",
        "noise = self.noise(noises.Stream.TILE, rows=tile.rows, first=tile.samples.start)",
        "noise = self.noise(noises.Stream.TILE, rows=tile.rows)",
        "test_row_noise.py::whatever_the_tile and importance",
    ),
    "noise keyed by the place in a block": Bug(
        "log_weights.py",
        "return RowNoise(noises.derive(self.seed, stream, *keys), self.keys[rows], first)",
        "return RowNoise(noises.derive(self.seed, stream, *keys), torch.arange(len(self.keys[rows])), first)",
        "test_row_noise.py::in_any_order and importance",
    ),
    "draws of all sites alike": Bug(
        "row_noise.py",
        "next(self._calls), wide)",
        "0, wide)",
        "test_row_noise.py::calls_are_independent",
    ),
    "samples and rows exchanged": Bug(
        "pair/running.py",
        "unfolded[name] = value.unflatten(axis, (num_samples, -1)).movedim(axis, 0)",
        "unfolded[name] = value.unflatten(axis, (-1, num_samples)).movedim(axis + 1, 0)",
        "test_pair.py::by_hand or is_the_exact_one",
    ),
    "everything believed": Bug(
        "evidence/result.py",
        "hopeless = pareto_k > 0.7",
        "hopeless = pareto_k > 7",
        "test_evidence.py::collapsed",
    ),
    "evaluation in training mode": Bug(
        "model.py",
        "with self._mode(training=False), torch.no_grad(),",
        "with torch.no_grad(),",
        "test_training.py::dropout",
    ),
    "patience during the warm-up": Bug(
        "training/loop.py",
        "if self._plan.patience is not None and self._epoch >= self._plan.kl_warmup:",
        "if self._plan.patience is not None:",
        "test_training.py::early_stopping",
    ),
    "gradients of the whole data set": Bug(
        "training/step.py",
        "(total / state.num_rows).backward()",
        "total.backward()",
        "test_training.py::any_number_of_rows",
    ),
    "PPCA divided by N − 1": Bug(
        "baselines/ppca.py", "shrink = (n - 1) / n", "shrink = 1.0", "test_baselines.py::maximum"
    ),
    "prior counts dropped": Bug(
        "baselines/independent_bernoulli.py",
        "(self.a + rows.sum(dim=0)) / (self.a + self.b + len(rows))",
        "(self.a + rows.sum(dim=0)) / (self.a + len(rows))",
        "test_baselines.py::ratio",
    ),
    "unpaired error of the difference": Bug(
        "comparison/predictive.py",
        "_standard_error(difference)",
        "float(np.hypot(_standard_error(score.estimate), _standard_error(best.estimate)))",
        "test_comparison.py::paired",
    ),
    "a ridge on the mixture": Bug(
        "baselines/gaussian_mixture.py",
        "reg_covar=0.0",
        "reg_covar=1e-3",
        "test_baselines.py::gaussian_mixture_is",
    ),
    "the worst start kept": Bug(
        "baselines/latent_class.py", "max(scouts", "min(scouts", "test_baselines.py::best_start"
    ),
    "slope of the profile likelihood": Bug(
        "baselines/factor_analysis.py",
        "+ noise - correlation.diagonal()",
        "- noise - correlation.diagonal()",
        "test_baselines.py::factor_analysis_is",
    ),
    "an offset that divides": Bug(
        "likelihoods/base.py",
        "first = first + offset.view(",
        "first = first - offset.view(",
        "test_context.py::multiplies",
    ),
    "a density of standardised rows": Bug(
        "likelihoods/real.py",
        "unit * log_scale.exp()",
        "log_scale.exp()",
        "test_standardize.py::jacobian",
    ),
    "the epoch's order forgotten by a resume": Bug(
        "training/loop.py",
        'self._epoch, self._number, self._losses, self._seconds = snapshot["place"]',
        'self._epoch, _, self._losses, self._seconds = snapshot["place"]',
        "test_checkpoints.py::resumed and Adam and eager",
    ),
    "Adam's correction for the first step of a call at all": Bug(
        "tracing/updates.py", "else 0.0) + ahead", "else 0.0) + 1", "test_tracing.py::optimizers"
    ),
    "one seed for a call": Bug(
        "tracing/drawing.py",
        "self._generator.manual_seed(seed)",
        "self._generator.manual_seed(seeds[0])",
        "test_tracing.py::steps_own",
    ),
    "the KL weight of the trace for good": Bug(
        "tracing/gradients.py",
        "_Weight(inputs[-1]) if annealed else 1.0",
        "1.0",
        "test_tracing.py::kl_weight",
    ),
    "a step that is not finite taken all the same": Bug(
        "tracing/steps.py",
        "before.copy_(torch.where(fine, after, before))",
        "before.copy_(after)",
        "test_tracing.py::not_finite",
    ),
    "schedulers trusted not to touch what Python knows": Bug(
        "training/loop.py",
        "self._traced.check()",
        "pass",
        "test_training.py::schedulers_change_in_python",
    ),
    "one binarization for all presentations": Bug(
        "training/step.py",
        "return (torch.rand_like(x) < x).to(x.dtype)",
        "return (x > 0.5).to(x.dtype)",
        "test_training.py::pixels",
    ),
    "the first chunk over and over": Bug(
        "training/loop.py",
        "self._rows.load(minibatches[self._number][0])",
        "self._rows.load(0)",
        "test_training.py::chunks_are_taken",
    ),
    "a pseudo-likelihood let through": Bug(
        "pair/inspection.py",
        "if computed:",
        "if False:",
        "test_context.py::scored_columns",
    ),
    "whole numbers taken for no totals": Bug(
        "pair/context.py",
        'given = {name: value.reshape(len(x), -1) for name, value in batch.items() if name != "x"}',
        'given = {name: value.reshape(len(x), -1) for name, value in batch.items() if name != "x" and value.is_floating_point()}',
        "test_computed_context.py::passes_silently",
    ),
    "rows that alone have a column taken for evidence": Bug(
        "pair/context.py",
        "if bool(likely.any()) and _spanned(",
        "if bool(likely.any()) or _spanned(",
        "test_computed_context.py::rare_flag or pixel",
    ),
    "guards that hide a total": Bug(
        "pair/context.py",
        "for left in (below, above, below | above):",
        "for left in ():",
        "test_computed_context.py::guards_against_zero",
    ),
    "chance held to be impossible": Bug(
        "pair/context.py",
        "return self.order + values.clamp(max=0)",
        "return self.order - 1e9",
        "test_computed_context.py::other_context",
    ),
    "families suggested without a price on their parameters": Bug(
        "likelihoods/suggestion.py",
        "each.family: each.fitted * np.log(len(some)) / 2 - np.nan_to_num(each.log_likelihood, nan=-np.inf)",
        "each.family: -np.nan_to_num(each.log_likelihood, nan=-np.inf)",
        "test_suggestion.py::drawn_from or best_fit",
    ),
    "a family that can't take the data let through": Bug(
        "likelihoods/base.py",
        "if self.inside is not None:",
        "if False:",
        "test_likelihoods.py::take_the_data",
    ),
    "a number given a total ranked with one that is not": Bug(
        "comparison/refusals.py",
        "if _totals(score) != _totals(reference):",
        "if False:",
        "test_computed_context.py::rank_together",
    ),
    "a cast that loses rows let through": Bug(
        "rounding.py",
        "self._worst = torch.maximum(self._worst, moved.amax(dim=0))",
        "self._worst = torch.maximum(self._worst, 0 * moved.amax(dim=0))",
        "test_rows.py::computes_in_float64 or moves_rows",
    ),
    "whole numbers that change let through": Bug(
        "rounding.py",
        "bad = changed | (moved > limit)",
        "bad = moved > limit",
        "test_rows.py::whole_numbers",
    ),
    "rounded before it is standardised": Bug(
        "networks.py",
        "if x.dtype == torch.float64:",
        "if False:",
        "test_rows.py::linear_model_is_exact",
    ),
    "rows that agree in float32 pair": Bug(
        "checks.py",
        "if self.sha256 == other.sha256:",
        "if self.rounded == other.rounded:",
        "test_rows.py::agree_in_float32_alone",
    ),
    "training rows known by exact values alone": Bug(
        "checks.py",
        "for i in range(2))",
        "for i in range(1))",
        "test_rows.py::known_in_either_dtype",
    ),
    "columns in another order": Bug(
        "checks.py",
        "if came != expected:",
        "if set(came) != set(expected):",
        "test_rows.py::other_names",
    ),
    "the index by position": Bug(
        "frames.py",
        "return value.iloc[own.get_indexer(rows)]",
        "return value",
        "test_rows.py::into_their_order or are_aligned",
    ),
    "training rows forgotten by estimators": Bug(
        "evidence/result.py",
        "            **about(evaluation.source, evaluation.pair),",
        "            **(about(evaluation.source, evaluation.pair) | {'seen': 0}),",
        "test_rows.py::every_estimator",
    ),
    "strings of numpy taken for numbers": Bug(
        "frames.py",
        "and not isinstance(name, str)",
        "or hasattr(name, 'dtype')",
        "test_rows.py::strings_of_numpy",
    ),
    "labels in frames made real numbers": Bug(
        "checks.py",
        "    value = frames.whole(value)",
        "",
        "test_context.py::keep_their_type",
    ),
    "rare labels not asked by checkpoints": Bug(
        "pair/behaviour.py",
        'if name != "x" and value.numel():',
        "if False:",
        "test_checkpoints.py::rare_label",
    ),
    "buffers of a step forgotten by checkpoints": Bug(
        "training/identity.py",
        "if (buffer := held[name]) is not None:",
        "if (buffer := None) is not None:",
        "test_checkpoints.py::momentum_of_buffers",
    ),
    "dtypes unsaid": Bug(
        "pair/inspection.py",
        "if any(words in str(reason) for words in _DTYPES):",
        "if False:",
        "test_bad_input.py::of_another_dtype or no_index",
    ),
    "training rows of a label let through": Bug(
        "comparison/predictive.py",
        "check_held_out(some, label=label, labels=len(within))",
        "pass",
        "test_comparison.py::under_their_label",
    ),
    "matches by chance taken for training rows": Bug(
        "comparison/refusals.py",
        "score._seen.by_chance > _BY_CHANCE / labels",
        "False",
        "test_comparison.py::under_any_label",
    ),
    "training rows let through": Bug(
        "comparison/refusals.py",
        "if score.seen > len(score) / 2:",
        "if score.seen > len(score):",
        "test_comparison.py::unless_asked",
    ),
    "accept and reject swapped": Bug(
        "evidence/annealed.py",
        "accepted = noise.uniform(len(acceptance), dtype=acceptance.dtype) < acceptance",
        "accepted = noise.uniform(len(acceptance), dtype=acceptance.dtype) > acceptance",
        "test_evidence_methods.py::leaves_its_density",
    ),
    "every move accepted": Bug(
        "evidence/annealed.py",
        "accepted = noise.uniform(len(acceptance), dtype=acceptance.dtype) < acceptance",
        "accepted = torch.ones_like(acceptance).bool()",
        "test_evidence_methods.py::leaves_its_density",
    ),
    "leapfrog off by half a step": Bug(
        "evidence/annealed.py",
        "new_momentum = half + 0.5 * step * new_gradient",
        "new_momentum = half",
        "test_evidence_methods.py::leaves_its_density",
    ),
    "momentum not turned round on rejection": Bug(
        "evidence/annealed.py",
        "momentum = torch.where(accepted[..., None], new_momentum, -momentum)",
        "momentum = torch.where(accepted[..., None], new_momentum, momentum)",
        "test_evidence_methods.py::leaves_its_density",
    ),
    "temperature reversed": Bug(
        "evidence/annealed.py",
        "return [t / num_temperatures for t in range(num_temperatures + 1)]",
        "return [1 - t / num_temperatures for t in range(num_temperatures + 1)]",
        "test_statistical.py::bound and annealed",
    ),
    "temperatures upwards on the way back": Bug(
        "evidence/annealed.py",
        "moves.betas[::direction],",
        "moves.betas,",
        "test_statistical.py::sandwich",
    ),
    "adaptation left on": Bug(
        "evidence/annealed.py",
        "state, momentum, _ = self._move(state, momentum, following, sizes[index], noise)",
        "state, momentum, rate = self._move(state, momentum, following, sizes[index], noise); "
        "sizes = sizes * torch.exp(0.2 * (rate - _ACCEPTANCE))",
        "test_evidence_methods.py::frozen",
    ),
    "mixture weight dropped": Bug(
        "evidence/posterior.py",
        "math.log(count / sum(self.counts)) + component.log_density(u, log_prior)",
        "component.log_density(u, log_prior)",
        "test_statistical.py::bound and refined",
    ),
    "Jacobian missing": Bug(
        "pair/coordinates.py",
        "log_det = log_det + _log_det(place, part, latents[name])",
        "log_det = log_det",
        "test_evidence_methods.py::constrained_latents_are and refined",
    ),
    "jackknife's weights off by one": Bug(
        "evidence/jackknife.py",
        "estimate = num_samples * everything - (num_samples - 1) * others.mean(dim=0)",
        "estimate = (num_samples - 1) * everything - (num_samples - 2) * others.mean(dim=0)",
        "test_evidence_methods.py::leave_one_out",
    ),
    "strata ignored": Bug(
        "diagnostics.py",
        "strata or [0] * num_tiles",
        "[0] * num_tiles",
        "test_evidence_methods.py::of_strata",
    ),
    "reverse weights the wrong way up": Bug(
        "evidence/sandwich.py",
        "-path.backward(moves",
        "path.backward(moves",
        "test_statistical.py::sandwich",
    ),
    "cells a tenth too large": Bug(
        "evidence/quadrature.py",
        "dim=0) + volume",
        "dim=0) + volume + 0.1",
        "test_evidence_methods.py::quadrature_on_every_pair_is and independent_sites",
    ),
    "tail of one quantile": Bug(
        "convert.py",
        'options = {"prob": (0.05, 0.95)} if method == "tail" else {}',
        'options = {"prob": (0.05, 0.05)} if method == "tail" else {}',
        "test_convert.py::slower_of_both",
    ),
    "stacking weights of two digits": Bug(
        "convert.py",
        "return {name: float(weights[name]) for name in elpds}",
        "return {name: round(float(weights[name]), 2) for name in elpds}",
        "test_convert.py::not_rounded",
    ),
    "any model resumed": Bug(
        "checkpoints.py",
        "if not bool(same.all()):",
        "if False:",
        "test_checkpoints.py::an_evaluation_goes_on and partial",
    ),
    "a fit resumed with another loss": Bug(
        "training/identity.py",
        "differentiate(state, self.minibatch, key, 1.0)",
        "0.0",
        "test_checkpoints.py::same_arguments_only and Weighted",
    ),
    "a model that reads what it scores": Bug(
        "pair/together.py",
        "elif not asked.has_an_order(held):",
        "elif False:",
        "test_mcmc.py::all_rows_together and of_itself",
    ),
    "cells that are conditions only forgotten": Bug(
        "baselines/pyro_mcmc.py",
        'if "unscored in part" in joint.measure:',
        "if False:",
        "test_mcmc.py::other_cells",
    ),
    "bounds that cross let through": Bug(
        "evidence/sandwich.py",
        "if found.gap.mean() < -min(most * found.gap_error, by_chance):",
        "if False:",
        "test_evidence_methods.py::bounds_that_cross",
    ),
    "healthy, however many nats": Bug(
        "collapse.py",
        "poor |= untrusted > _FEW",
        "poor |= False",
        "test_collapse.py::many_nats",
    ),
    "pilot's draws answer": Bug(
        "evidence/auto.py",
        "noise.derive(self._evaluation.seed, Stream.LADDER, stage, turn)",
        "noise.derive(self._evaluation.seed, Stream.LADDER)",
        "test_evidence_methods.py::fresh_noise",
    ),
    "threads that do not wait for one another": Bug(
        "turns.py",
        "with _lock, _plain_torch():",
        "with _plain_torch():",
        "test_turns.py::several_threads or half_trained",
    ),
    "inference mode inside a call": Bug(
        "turns.py",
        "if torch.is_inference_mode_enabled():",
        "if False:",
        "test_turns.py::autocast and (annealed or fit)",
    ),
    "autocast inside a call": Bug(
        "turns.py",
        "if torch.is_autocast_enabled(device):",
        "if False:",
        "test_turns.py::autocast and elbo",
    ),
    "a last row by itself": Bug(
        "tracing/steps.py",
        "if whole and last == 1:",
        "if whole and last == -1:",
        "test_training.py::last_row and traced",
    ),
    "a joined batch weighed as if it were whole": Bug(
        "pair/running.py",
        'scale = num_rows / len(batch["x"])',
        'scale = num_rows / (len(batch["x"]) - len(batch["x"]) % 2)',
        "test_training.py::joined",
    ),
    "a flat density that slopes": Bug(
        "evidence/posterior.py",
        "return torch.zeros_like(u) if found is None else found",
        "return torch.ones_like(u) if found is None else found",
        "test_evidence_methods.py::does_not_depend",
    ),
    "rows of 16 bits": Bug(
        "checks.py",
        "if x.dtype not in FLOATS:",
        "if False:",
        "test_bad_input.py::sixteen",
    ),
    "a pair of 16 bits": Bug(
        "model.py",
        "if self.dtype is not None and self.dtype not in checks.FLOATS:",
        "if False:",
        "test_bad_input.py::sixteen and elbo",
    ),
    "a shape taken for data from elsewhere": Bug(
        "pair/inspection.py",
        "raise unfilled(name, site, probe_rows) if value.shape == shape else no_answer(name)",
        "raise no_answer(name)",
        "test_bad_input.py::another_shape and elbo and mlp",
    ),
    "a sparse matrix as chunks of rows": Bug(
        "training/rows.py",
        'hasattr(x, name) for name in ("to_numpy", "toarray", ',
        'hasattr(x, name) for name in ("to_numpy", ',
        "test_bad_input.py::another_kind and scipy",
    ),
    "columns of any size": Bug(
        "model.py",
        "if how and largest > _UNEVEN * smallest:",
        "if how and largest > 1e30 * smallest:",
        "test_bad_input.py::very_different",
    ),
}


def _import_libraries() -> None:
    """Everything the tests import but the package itself; nothing is computed, so a fork is safe."""
    import arviz  # noqa: F401
    import pandas  # noqa: F401
    import pyro.infer.autoguide  # noqa: F401
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.decomposition  # noqa: F401
    import torch._dynamo  # noqa: F401


def _plant(bug: Bug, folder: str) -> None:
    shutil.copytree(PACKAGE, Path(folder) / "pyrovae")
    path = Path(folder) / "pyrovae" / bug.file
    source = path.read_text()
    if source.count(bug.line) != 1:
        raise SystemExit(f"{bug.file} has {source.count(bug.line)} lines {bug.line!r}; expected one")
    path.write_text(source.replace(bug.line, bug.planted))


def _fork(run: Callable[[], int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        status = run()
    except BaseException:
        status = 99
    os._exit(status)


class _Failures:
    """A plugin of pytest's that counts the tests that fail while they run."""

    count = 0

    def pytest_runtest_logreport(self, report) -> None:
        self.count += report.failed and report.when == "call"


def _tests(folder: str, selection: str) -> int:
    """Run a selection of the tests against the copy in ``folder``: 1 where one fails, else pytest's exit code or 97."""
    import pytest
    import torch

    torch.set_num_threads(1)
    sys.path[:0] = [folder, str(TESTS)]
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    file, _, keyword = selection.partition("::")
    import pyrovae

    if Path(pyrovae.__file__).parent.parent != Path(folder).resolve():
        return 98
    options = [
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:doctest",
        "-p",
        "no:hypothesispytest",  # which costs every child a second
        "-o",
        "addopts=",
        "--rootdir",
        str(TESTS.parent),
    ]
    failures = _Failures()
    code = int(pytest.main([str(TESTS / file), "-k", keyword, *options], plugins=[failures]))
    return 97 if code == 1 and not failures.count else code


def main(names: list[str]) -> int:
    """Plant the named bugs, or all; two at a time. Returns how many were not caught."""
    _import_libraries()
    jobs = list(names or BUGS)
    running: dict[int, str] = {}
    started: dict[int, float] = {}
    wrong = 0
    with tempfile.TemporaryDirectory() as workplace:
        while jobs or running:
            while jobs and len(running) < 2:
                name = jobs.pop(0)
                folder = tempfile.mkdtemp(dir=workplace)
                _plant(BUGS[name], folder)
                child = _fork(lambda folder=folder, name=name: _tests(folder, BUGS[name].tests))
                running[child], started[child] = name, time.monotonic()
            pid, status = os.wait()
            name = running.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            wrong += code != 1
            word = "caught" if code == 1 else f"NOT CAUGHT (exit code {code})"
            seconds = time.monotonic() - started[pid]
            print(f"{seconds:5.1f} s {name:<40} {BUGS[name].tests:<40.40} {word}", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
