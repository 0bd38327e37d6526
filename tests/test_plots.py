"""Figures: the numbers behind the pictures, with and without axes; colours, labels and settings."""

import dataclasses
import itertools
import re
from decimal import Decimal

import matplotlib
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

import pyrovae as pv
from pyrovae import plots
from pyrovae.evidence import Check
from pyrovae.refusals import Refused

NAN = float("nan")


@pytest.fixture(scope="module")
def rows():
    return (torch.rand(60, 4, generator=torch.Generator().manual_seed(1)) < 0.4).float()


@pytest.fixture(scope="module")
def score(rows):
    with torch.random.fork_rng(devices=[]):
        return pv.log_evidence(pv.VAE.mlp(4, 2, hidden_dims=(4,)), rows, num_samples=100, check=False)


@pytest.fixture
def ax():
    return Figure(layout="constrained").subplots()


@pytest.fixture(autouse=True)
def closed():
    settings = dict(matplotlib.rcParams)
    yield
    plt.close("all")
    assert dict(matplotlib.rcParams) == settings


def heights(ax, number):
    return ax.patches[number].get_data().values


def inside(ax):
    """Whether everything drawn lies within the figure, and so no label is cut off."""
    ax.figure.draw_without_rendering()
    drawn, (width, height) = ax.get_tightbbox(), ax.figure.bbox.size
    return drawn.x0 >= -1 and drawn.y0 >= -1 and drawn.x1 <= width + 1 and drawn.y1 <= height + 1


def test_rate_has_axes_of_its_own_and_late_epochs_fill_the_others():
    history = pv.History(
        [
            {
                "epoch": n,
                "elbo": -1000.0 / n,
                "rate": n,
                "reconstruction": -1000.0 / n + n,
                "validation_elbo": -2.0,
            }
            for n in range(1, 41)
        ]
    )
    for given in (None, Figure(layout="constrained").subplots(), Figure().add_axes((0, 0, 1, 1))):
        ax = plots.training_curves(history, ax=given)
        assert given is None or ax is given
        above, below = ax.figure.axes
        assert above is ax
        (line,) = below.get_lines()
        assert line.get_ydata().tolist() == list(range(1, 41))
        assert ax.get_ylim()[0] > -300  # the first epochs are at −1000
        assert below.get_position().y1 <= ax.get_position().y0
        assert [text.get_text() for text in ax.get_legend().get_texts()] == [
            "reconstruction",
            "ELBO",
            "validation",
        ]


@pytest.mark.parametrize("validation", [True, False])
def test_a_single_epoch_is_drawn_as_points(validation):
    epoch = {"epoch": 1, "elbo": -3.0, "rate": 1.0, "reconstruction": -2.0}
    ax = plots.training_curves(pv.History([epoch | ({"validation_elbo": -4.0} if validation else {})]))
    drawn = [line for line in ax.get_lines() if len(line.get_xdata())]
    assert [line.get_ydata().tolist() for line in drawn] == [
        [-2.0],
        [-3.0],
        *([[-4.0]] if validation else []),
    ]
    assert all(line.get_marker() in ("o", "s") for line in drawn + ax.figure.axes[1].get_lines())
    assert ax.figure.axes[1].get_xticks().tolist() == [1]


def test_pairs_of_images_are_one_below_the_other(ax):
    x = torch.arange(12.0).reshape(3, 4)
    plots.reconstructions(x, 100 + x, (2, 2), columns=2, ax=ax)
    canvas = np.ma.filled(ax.get_images()[0].get_array(), np.nan)
    assert canvas.shape == (4 * 3 - 1, 2 * 3 - 1)
    assert canvas[:2, :2].tolist() == [[0, 1], [2, 3]]
    assert canvas[3:5, 3:5].tolist() == [[104, 105], [106, 107]]
    assert canvas[6:8, :2].tolist() == [[8, 9], [10, 11]]
    assert np.isnan(canvas[2]).all()
    assert np.isnan(canvas[6:, 3:]).all()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["row", "reconstruction"] * 2


def test_log_evidence_is_a_histogram_beside_simulated_rows(score):
    ax = plots.log_evidence(score, score)
    assert ax.get_legend().get_texts()[1].get_text() == "simulated rows (60)"
    assert heights(ax, 0).sum() == pytest.approx(1)
    assert np.array_equal(heights(ax, 0), heights(ax, 1))
    assert ax.get_lines()[0].get_xdata()[0] == score.mean
    assert inside(ax)


def test_a_histogram_says_how_many_values_lie_beyond_its_axis(rows, ax):
    values = np.r_[np.linspace(-30.0, -5.0, 399), -7495.0]
    known = pv.log_evidence(pv.baselines.IndependentBernoulli().fit(rows), rows[:1].repeat(400, 1))
    plots.log_evidence(dataclasses.replace(known, estimate=values), ax=ax)
    edges = ax.patches[0].get_data().edges
    beyond = int((values < edges[0]).sum())
    assert beyond in (2, 3)  # half of 1 % of 400
    assert edges[-1] == -5
    assert heights(ax, 0).sum() == pytest.approx(1 - beyond / 400)
    words = " ".join(ax.get_xlabel().split())
    assert f"beyond the axis: {beyond} of rows (400); all lie from -7495 to -5" in words
    x = np.c_[values, np.arange(400)]
    first, second = plots.predictive(x, x[:-1])
    assert "1 of data" not in (words := " ".join(first.get_xlabel().split()))
    assert re.search(r"beyond the axis: \d of data, \d of simulated; all lie from -7495 to -5", words)
    assert second.get_xlabel() == ""  # all values are on the axis
    assert heights(second, 0).sum() == pytest.approx(1)
    values[-1] = -np.inf
    ax = plots.log_evidence(dataclasses.replace(known, estimate=values))
    assert "1 of rows (400); all lie from -inf to -5" in " ".join(ax.get_xlabel().split())
    assert heights(ax, 0).sum() == pytest.approx(399 / 400)


@pytest.mark.parametrize("holed", [0, 1])
def test_rows_with_missing_cells_are_not_drawn_beside_complete_ones(rows, holed, ax):
    fitted = pv.baselines.IndependentBernoulli().fit(rows)
    gone = rows.masked_fill(torch.arange(4) == 2, torch.nan)
    scores = [pv.log_evidence(fitted, gone), pv.log_evidence(fitted, rows)]
    with pytest.raises(Refused, match="simulated: expected rows with as many observed cells"):
        plots.log_evidence(scores[holed], scores[1 - holed])
    plots.log_evidence(scores[0], scores[0], ax=ax)
    words = [text.get_text() for text in ax.get_legend().get_texts()]
    assert words[:2] == ["rows (60, 3 of 4 cells)", "simulated rows (60, 3 of 4 cells)"]


def test_an_evidence_is_drawn_as_one_number_of_all_rows(score, ax):
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def model(x):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    fitted = pv.baselines.PyroMCMC(model, num_samples=100, warmup_steps=100, num_chains=2).fit(x)
    evidence = fitted.marginal_likelihood()
    plots.log_evidence(evidence, ax=ax)
    assert ax.get_xlabel() == "log P(x) of 30 rows together, nats"
    assert ax.get_legend().get_texts()[0].get_text() == "evidence of 30 rows"
    point, interval = ax.get_lines()
    assert point.get_xdata().tolist() == evidence.estimate.tolist()
    assert tuple(interval.get_xdata()) == evidence.mean_interval
    assert inside(ax)
    for pair in ((evidence, score), (score, evidence)):
        with pytest.raises(Refused, match="simulated: expected log P of single rows"):
            plots.log_evidence(*pair)


@pytest.mark.parametrize("name", ["importance of a model with a very long name indeed", "n" * 90, "W" * 50])
def test_a_long_name_is_broken_into_lines_of_the_legend(name, score):
    ax = plots.pareto_k({name: score, "auto": score})
    first, second = (text.get_text() for text in ax.get_legend().get_texts())
    assert re.sub(r"\s", "", first).startswith(re.sub(r"\s", "", name) + ":")
    assert "\n" not in second
    assert inside(ax)
    assert ax.get_window_extent().width > 0.7 * ax.figure.bbox.width


def test_k_hat_says_whose_it_is(score, ax):
    plots.pareto_k(
        {
            "narrow": score,
            "exact": pv.LogEvidence.exact(
                score.estimate, measure=score.measure, method="exact", fingerprint=score.fingerprint
            ),
        },
        ax=ax,
    )
    words = [text.get_text() for text in ax.get_legend().get_texts()]
    limit = ax.get_lines()[-1].get_ydata()[0]
    assert limit == pytest.approx(0.5)  # 1 − 1 / log10 of 100 draws
    assert words == [f"narrow: {(score.pareto_k <= limit).sum()} of 60", "exact: no draws"]
    assert ax.get_lines()[0].get_ydata().tolist() == sorted(score.pareto_k)
    assert plots.pareto_k(score).get_legend().get_texts()[0].get_text().startswith("importance: ")


def test_check_shows_where_rows_are_missed(ax):
    odds = np.array([-3.0, -1.0, 2.0, -np.inf])
    plots.check(Check("auto", 3, 1, 0, 4, None, "too few", odds, 0, 0), ax=ax)
    assert "1 of 3 trusted" in ax.get_legend().get_texts()[1].get_text()
    assert heights(ax, 0).sum() == pytest.approx(1)
    empty = Check("quadrature", 0, 0, 0, 0, None, "no draws", np.empty(0), 0, 0)
    with pytest.raises(Refused, match="no draws"):
        plots.check(empty)


def test_each_group_has_its_own_reference_and_no_label_is_cut(score, rows):
    models = {
        "a model with a name of forty characters": score,
        "b": pv.baselines.IndependentBernoulli().fit(rows),
    }
    labels = pd.Series(["left", "right"] * 30)
    table = pv.compare(models, rows, by=labels, training_rows=True)
    ax = plots.compare(table)
    ends = [
        tuple(segment[0])
        for line in ax.collections[:]
        for segment in line.get_segments()
        if segment[0][0] == segment[1][0]
    ]
    best = [table.loc[label]["elpd"].iloc[0] for label in ("left", "right")]
    assert {round(value, 9) for value in best} <= {round(x, 9) for x, _ in ends}
    names = [label.get_text().replace("\n", " ") for label in ax.get_yticklabels()]
    assert names == ["left:", *table.loc["left"].index, "right:", *table.loc["right"].index]
    assert inside(ax)
    assert inside(plots.compare(pv.compare_evidence({"b": models["b"].marginal_likelihood()})))


def test_convergence_and_diagnosis_draw_their_numbers(rows, score):
    frame = pd.DataFrame(
        {
            "num_samples": [10, 100],
            "elbo": -3.0,
            "lower_bound": [-2.5, -2.2],
            "mcse": 0.1,
            "bias": -0.1,
            "jackknife": -2.1,
            "pareto_smoothed": -2.1,
        }
    )
    ax = plots.convergence(frame)
    assert ax.get_xscale() == "log"
    assert ax.get_lines()[0].get_ydata().tolist() == [-2.5, -2.2]
    dimensions = pd.DataFrame({"rate": [0.1, 2.0], "active": [False, True]}, index=["z[0]", "z[1]"])
    found = pv.diagnosis.Diagnosis("healthy", (), dimensions, *[0.0] * 8, 60, *[0.0] * 2, "importance", score)
    ax = plots.diagnosis(found)
    assert [bar.get_height() for bar in ax.patches] == [2.0, 0.1]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["z[1]", "z[0]"]
    assert ax.patches[0].get_facecolor() != ax.patches[1].get_facecolor()


@pytest.mark.parametrize("kind", ["naive", "aware", "dates", "periods"])
def test_many_dates_get_a_colour_bar_of_days(kind):
    days = pd.date_range("2024-01-01", periods=30, freq="D")
    dates = {
        "naive": days,
        "aware": days.tz_localize("UTC"),
        "dates": days.date,
        "periods": days.to_period("D"),
    }
    color = pd.Series(dates[kind]).where(np.arange(30) != 4)
    ax = plots.latent(np.random.default_rng(0).normal(size=(30, 2)), color)
    known = ax.collections[0].get_array()
    assert known.tolist() == [19723.0 + n for n in range(30) if n != 4]  # days since 1970
    ax.figure.draw_without_rendering()
    ticks = [label.get_text() for label in ax.figure.axes[1].get_yticklabels()]
    assert all(re.fullmatch(r"2024-0[12]-\d\d", tick) for tick in ticks)
    few = plots.latent(np.zeros((30, 2)), days.repeat(10)[:30])
    assert len(few.get_legend().get_texts()) == 3


def test_codes_of_many_dimensions_are_principal_components():
    z = torch.randn(50, 3, dtype=torch.float64) @ torch.diag(
        torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64)
    )
    frame = pd.DataFrame(
        torch.cat([z, z], 1), columns=[f"z_{k}{end}" for end in ("", "_sd") for k in range(3)]
    )
    ax = plots.latent(frame, pd.Series(range(50), name="dose, mg").sample(frac=1, random_state=0))
    drawn, colours = ax.collections[0].get_offsets().data, ax.collections[0].get_array()
    centred = z - z.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    expected = (centred @ vectors.flip(1)[:, :2]).numpy()
    assert np.allclose(abs(drawn), abs(expected))
    assert colours.tolist() == list(range(50))
    share = float(values[-1] / values.sum())
    assert ax.get_xlabel() == f"principal component 1 ({share:.0%} of variance)"
    assert ax.figure.axes[1].get_ylabel() == "dose, mg"


def test_labels_get_colours_and_marks_and_rare_ones_are_other(ax):
    labels = [str(n % 20) if n % 20 < 14 else "0" for n in range(400)]
    plots.latent(np.zeros((400, 1)), labels, ax=ax)
    words = [text.get_text() for text in ax.get_legend().get_texts()]
    assert len(words) == 13
    assert words[-1] == "other"
    sizes = [len(drawn.get_offsets()) for drawn in ax.collections]
    assert sum(sizes) == 400
    assert sizes[-1] == 40
    marks = {(tuple(d.get_facecolor()[0]), d.get_paths()[0].vertices.tobytes()) for d in ax.collections}
    assert len(marks) == 13


def words_of(texts):
    return [text.get_text() for text in texts]


def test_levels_of_categories_keep_their_order(ax):
    """In either of two frames, or only in the model; levels without an order are in that of the alphabet."""
    levels = ["never", "sometimes", "often"]
    held = pd.DataFrame(
        {"use": pd.Categorical(levels * 20, levels, ordered=True), "y": np.arange(60.0) ** 1.5}
    )
    text = held.astype({"use": str})
    for x, simulated, order in (
        (held, text, levels),
        (text, held, levels),
        (text, text, sorted(levels)),
        (held, text.replace("often", "always"), ["never", "sometimes", "often", "always"]),
        (held, held.set_axis([0, 1], axis=1), levels),
    ):
        if list(simulated) == [0, 1]:
            x = x.rename(columns={"y": "dose"})
        panel = plots.predictive(x, simulated)[0]
        assert words_of(panel.get_xticklabels()) == order
    many = pd.Categorical([str(number) for number in range(20)] * 3, [str(number) for number in range(20)])
    panel = plots.predictive(held.assign(use=many), held.assign(use=many))[0]
    assert words_of(panel.get_xticklabels()) == [str(number) for number in range(12)]
    vae = pv.VAE.for_table(held, 1, hidden_dims=(4,))
    for rows in (held, text):
        found = pv.impute(
            vae, rows.mask(np.arange(60)[:, None] % 7 == [0, 1]), 3, num_samples=100, check=False
        )
        panel = plots.imputation(found, ["use"])[0]
        drawn = words_of(panel.get_xticklabels())
        assert drawn == [level for level in levels if level in drawn]
        assert len(drawn) > 1
    plots.latent(np.zeros((60, 2)), held["use"], ax=ax)
    assert words_of(ax.get_legend().get_texts()) == levels
    several = plots.latent(held[["y"]], held["use"].sample(frac=1, random_state=0))
    assert words_of(several.get_legend().get_texts()) == levels
    assert [drawn.get_offsets()[0, 0] for drawn in several.collections] == [0, 1, 2]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["b", None, "a", NAN, "b"], ["a", "b", "missing"]),
        (pd.Series(["b", pd.NA, "a", pd.NA, "b"], dtype="string"), ["a", "b", "missing"]),
        (pd.Categorical(["b", None, "a", None, "b"], ["b", "a", "c"]), ["b", "a", "missing"]),
        ([10.0, NAN, 9.0, NAN, 10.0], ["9", "10", "missing"]),
        (pd.Series([10, None, 9, None, 10], dtype="Int64"), ["9", "10", "missing"]),
        ([10, None, 9, None, 10], ["9", "10", "missing"]),
        ([None] * 5, ["missing"]),
        (["missing", None, "a", None, "missing"], ["a", "missing"]),
    ],
)  # fmt: skip
def test_rows_without_a_label_are_missing_and_grey(ax, labels, words):
    plots.latent(np.arange(10.0).reshape(5, 2), labels, ax=ax)
    assert words_of(ax.get_legend().get_texts()) == words
    last = ax.collections[-1]
    assert matplotlib.colors.to_hex(last.get_facecolor()[0]) == plots.drawing.GREY
    assert {2.0, 6.0} <= set(last.get_offsets()[:, 0].tolist())
    assert sum(len(drawn.get_offsets()) for drawn in ax.collections) == 5


def test_rows_without_a_number_are_beside_those_with_a_colour_bar():
    numbers = [NAN, *np.arange(20) / 3]
    drawn = plots.latent(np.arange(42.0).reshape(21, 2), pd.Series(numbers, name="dose"))
    assert [len(each.get_offsets()) for each in drawn.collections] == [20, 1]
    assert drawn.collections[0].get_array().tolist() == numbers[1:]
    assert words_of(drawn.get_legend().get_texts()) == ["missing"]
    assert drawn.figure.axes[1].get_ylabel() == "dose"


def test_a_category_keeps_its_order_in_a_report():
    held = pd.Series(pd.Categorical(["low", "high", None], ["low", "high"]), index=[2, 1, 0], name="dose")
    found = pv.reporting.contents._series(held, pd.DataFrame({"a": [1.0, 2.0, 3.0]}))
    assert found.cat.categories.tolist() == ["low", "high"]
    assert found.fillna("high").tolist() == ["high", "high", "low"]
    assert found.name == "dose"


def test_every_row_is_drawn_whatever_its_label(ax):
    """A label may be called "other", and numbers that are written alike are two labels."""
    labels = ["other"] * 10 + [f"l{number}" for number in range(30)]
    plots.latent(np.zeros((40, 2)), labels, ax=ax)
    assert [len(drawn.get_offsets()) for drawn in ax.collections] == [1] * 11 + [29]
    drawn = plots.latent(np.zeros((4, 2)), [18262.41, 18262.43, 18262.43, 0.5])
    assert [text.get_text() for text in drawn.get_legend().get_texts()] == ["0.5", "18262.41", "18262.43"]
    assert [len(each.get_offsets()) for each in drawn.collections] == [1, 1, 2]


@pytest.mark.parametrize(
    ("codes", "drawn", "title"),
    [
        ({"a": [0.0, 1.0, 2.0], "b": [5.0, NAN, 6.0]}, [[0.0, 5.0], [2.0, 6.0]], "1 of 3 rows"),
        (
            {"a": [NAN, 1.0, 2.0], "b": [NAN] * 3},
            [[1.0, 1.0], [2.0, 2.0]],
            "1 of 2 dimensions.*; 1 of 3 rows",
        ),
        (
            {"a": [0.0, 1.0, 2.0], "b": [5.0, NAN, 6.0], "c": [7.0, 8.0, 9.0]},
            [[0.0, 7.0], [1.0, 8.0], [2.0, 9.0]],
            "^1 of 3 dimensions with NaN left out$",
        ),
        ({"a": [0.0, 0.0, NAN], "b": [1.0, 1.0, 1.0]}, [[0.0, 1.0], [0.0, 1.0]], "1 of 3 rows"),
        ({"a": [0.0], "b": [1.0], "verdict": ["trust"]}, [[0.0, 1.0]], "^$"),
        ({"b": [1.0], "verdict": [2.0], "verdict_sd": [1.0]}, [[1.0, 2.0]], "^$"),
    ],
)
def test_latents_that_rows_lack_and_verdicts_are_left_out(ax, codes, drawn, title):
    frame = pd.DataFrame(codes, index=pd.RangeIndex(len(codes["b"]), 0, -1))
    plots.latent(frame, pd.Series(1, frame.index), ax=ax)
    assert ax.collections[0].get_offsets().tolist() == drawn
    assert re.search(title, ax.get_title())


def test_codes_that_no_row_has_are_refused(ax):
    with pytest.raises(ValueError, match="z: expected a row that has every latent"):
        plots.latent(pd.DataFrame({"a": [NAN, 1.0], "b": [2.0, NAN]}), ax=ax)


def test_rows_without_names_are_matched_by_position():
    named = pd.DataFrame({"a": [0.0, 1.0], "b": [True, False]})
    for x, simulated in (
        (named, torch.tensor([[0.0, 1.0], [3.0, 1.0]])),
        (named.to_numpy(dtype=float), pd.DataFrame({"a": [0.0, 3.0], "b": [True, True]})),
    ):
        assert plots.column_distances(x, simulated)["distance"].tolist() == [0.5, 0.5]
    assert len(plots.predictive(named, torch.zeros(2, 2), ["b"])) == 1
    for other in (torch.zeros(2, 3), named.rename(columns={"a": "c"}), pd.DataFrame({0: ["u"], 1: [1.0]})):
        with pytest.raises(ValueError, match="simulated: expected the columns of x"):
            plots.column_distances(named, other)


def test_one_row_of_many_latents_is_drawn(ax):
    plots.latent(np.array([[1.0, 2.0, 3.0]]), ax=ax)
    assert ax.collections[0].get_offsets().tolist() == [[0.0, 0.0]]
    assert ax.get_ylabel() == "principal component 2 (0% of variance)"


@pytest.mark.parametrize("panels", [1, 3])
@pytest.mark.parametrize(
    "name",
    ["systolic blood pressure at baseline (mmHg)", "n" * 90, "W" * 30, "a" * 15, "$x$ and $y$ " * 9, ""],
)
def test_titles_of_panels_do_not_meet(name, panels):
    """A long name is broken, and cut after the second line; the number stays."""
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(30, panels)) * 1e4)
    frame = frame.set_axis([f"{name}{number or ''}" for number in range(panels)], axis=1)
    axes = plots.predictive(frame, frame + 1)
    axes[0].figure.draw_without_rendering()
    distances = plots.column_distances(frame, frame + 1)["distance"]
    places = [each.title.get_window_extent() for each in axes]
    assert all(one.x1 <= other.x0 for one, other in itertools.pairwise(places))
    assert places[0].x0 >= 0
    assert places[-1].x1 <= axes[0].figure.bbox.width
    for each, (label, distance) in zip(axes, distances.items(), strict=True):
        title = each.get_title()
        assert title.count("\n") <= 1
        assert title.replace("\n", " ").endswith(f": {distance:.2f}")
        assert "…" in title or re.sub(r"\s", "", title).startswith(re.sub(r"\s", "", label))


def test_numbers_and_levels_of_columns_are_drawn_as_shares():
    data = pd.DataFrame({"age": [1.5, None, 3.5, 9.0] * 5, "job": ["a", "b", None, "b"] * 5})
    simulated = pd.DataFrame({"age": [1.5, 2.0, 3.5, 50.0] * 5, "job": ["a", "c", "b", "b"] * 5})
    axes = plots.predictive(data, simulated)
    assert [bar.get_height() for bar in axes[1].patches[:3]] == pytest.approx([1 / 3, 2 / 3, 0])
    assert [bar.get_height() for bar in axes[1].patches[3:]] == pytest.approx([1 / 4, 1 / 2, 1 / 4])
    found = plots.column_distances(data, simulated)["distance"]
    # at 9: all of the data, three quarters of the others; c and b differ by a quarter and a sixth
    assert found["age"] == pytest.approx(0.25)
    assert found["job"] == pytest.approx(0.25)
    assert [each.get_title() for each in axes] == ["age: 0.25", "job: 0.25"]
    with pytest.raises(Refused, match="columns of other names"):
        plots.column_distances(data, simulated.rename(columns={"age": "years"}))


def test_numbers_in_columns_of_objects_are_numbers():
    """Numbers keep their distance as decimals, beside None, and where the other side is whole numbers."""
    values = np.arange(8) % 5
    plain, other = pd.DataFrame({"a": values}), pd.DataFrame({"a": values * 1.5 + 0.25})
    expected = plots.column_distances(plain, other)["distance"].item()
    assert 0 < expected < 1
    decimals = pd.DataFrame({"a": [*map(Decimal, values.tolist()), None]})
    for real in (plain.astype(object), pd.DataFrame({"a": [None, *values.tolist()]}, dtype=object), decimals):
        for drawn in (other, other.astype(object)):
            assert plots.column_distances(real, drawn)["distance"].item() == expected


def test_columns_without_observed_cells_are_drawn_and_repeated_names_refused():
    empty = pd.DataFrame({"a": [None, None], "b": [1.0, 2.0]})
    (first, second) = plots.predictive(empty, empty)
    assert [each.get_title() for each in (first, second)] == ["a: no cells", "b: 0.00"]
    assert first.texts[0].get_text() == "no observed cell"
    for rows in ((empty, empty.fillna(1.0)), (empty.fillna(1.0), empty)):
        found = plots.column_distances(*rows)
        np.testing.assert_array_equal(found["distance"], [NAN, 0.0])  # nothing was compared
        np.testing.assert_array_equal(found["by_chance"], [NAN, 1.0])
    twice = empty.set_axis(["a", "a"], axis=1)
    with pytest.raises(Refused, match="x: expected one column of each name, got 'a' more than once"):
        plots.predictive(twice, twice)


def test_distance_exceeds_chance_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(size=(2, 200, 400))
    found = plots.column_distances(draws[0], draws[1])
    from scipy.stats import ks_2samp

    assert found["distance"][3] == pytest.approx(ks_2samp(draws[0, :, 3], draws[1, :, 3]).statistic)
    # 5 % of 400 columns are 20; the bound is conservative for finite rows
    assert 4 <= (found["distance"] > found["by_chance"]).sum() <= 38


def test_the_worst_columns_are_drawn_in_their_order():
    x = np.arange(200.0).reshape(20, 10)
    moved = x + np.where(np.arange(10) == 0, 0.0, 5.0)
    axes = plots.predictive(x, moved)
    assert [each.get_title().split(":")[0] for each in axes] == [str(n) for n in range(1, 10)]
    few = Figure().subplots(1, 2)
    assert [each.get_title()[0] for each in plots.predictive(x, moved, columns=[3, 0], ax=few)] == ["3", "0"]


@pytest.mark.parametrize("framed", [False, True])
def test_draws_of_missing_cells_are_beside_the_observed_cells(framed):
    x = np.arange(40.0).reshape(20, 2) % 13 + np.eye(20, 2)
    x[0, 1] = x[3, 1] = np.nan
    if framed:
        x = pd.DataFrame(x, columns=["a", "b"])
    found = pv.impute(pv.baselines.FullGaussian().fit(x), x, num_imputations=30)
    (ax,) = plots.imputation(found)
    assert ax.get_title() == f"{'b' if framed else 1}: 2 missing"
    observed, drawn = (heights(ax, n) * count for n, count in ((0, 18), (1, 60)))
    assert observed.sum() == pytest.approx(18)
    assert drawn.sum() == pytest.approx(60)
    edges = ax.patches[1].get_data().edges
    expected, _ = np.histogram(found.draws.clip(edges[0], edges[-1]), edges)
    assert np.allclose(drawn, expected)
    with pytest.raises(Refused, match="columns of"):
        plots.imputation(found, ["a" if framed else 0])


def test_observed_cells_of_other_rows_are_drawn_beside_the_draws():
    x = np.c_[np.arange(40.0), np.arange(40.0) % 7]
    x[:20, 1] = np.nan
    found = pv.impute(pv.baselines.FullGaussian().fit(x), x[:20], num_imputations=2)
    (ax,) = plots.imputation(found, [1], x=x)
    edges = ax.patches[0].get_data().edges
    expected, _ = np.histogram(x[20:, 1], edges)
    assert np.allclose(heights(ax, 0), expected / 20)
    with pytest.raises(Refused, match="x: expected the columns of the completed rows"):
        plots.imputation(found, [1], x=x[:, :1])
