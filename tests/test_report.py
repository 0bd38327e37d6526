"""The report: one file that opens in a browser, with the numbers that the library returns; nothing half-written."""

import dataclasses
import html
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyrovae as pv
from pyrovae import noise, pages
from pyrovae.refusals import Refused
from pyrovae.reporting import sections
from pyrovae.reporting.contents import Contents
from pyrovae.rows import leaving_cells

pytestmark = pytest.mark.usefixtures("few_checked")

HOSTILE = "<script>alert('x')</script>"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECTIONS = [
    "Data and families",
    "Training",
    "log P(x)",
    "Check of the method on this model",
    "Comparison with baselines",
    "Columns of the data and of simulated rows",
    "Latent space",
    "Missing cells",
    "Least likely rows",
    "Diagnosis",
    "How to repeat this report",
]


def rows(seed, count=60):
    rng = np.random.default_rng(seed)
    job = rng.choice(["cook", "nurse", HOSTILE], count)
    frame = pd.DataFrame({"job": job, HOSTILE: rng.normal(np.where(job == "cook", 5, 0), 1)})
    frame.loc[::5, "job"] = None
    frame = frame.set_axis([f"{HOSTILE} {n}" for n in range(count)], axis=0)
    return frame.set_axis(pd.MultiIndex.from_tuples([("job", "now"), (HOSTILE, "b")]), axis=1)


@pytest.fixture(scope="module")
def table():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = pv.VAE.for_table(rows(0), 1, hidden_dims=(4,))
        pv.fit(vae, rows(0), epochs=3, lr=1e-2)
    return vae


@pytest.fixture(scope="module")
def written(table, tmp_path_factory):
    """A report and its text."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    pv.report(table, rows(1, 40), path, train=rows(2), method="importance", title=f"Jobs {HOSTILE}")
    return path, path.read_text(encoding="utf-8")


def section(text, title):
    """The words of a section."""
    (found,) = re.findall(rf"<h2>{re.escape(title)}</h2>(.*?)</section>", text, re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r'src="[^"]*"', "", found)))


@pytest.mark.slow
def test_every_part_is_there_and_escaped(written):
    _, text = written
    assert [html.unescape(title) for title in re.findall(r"<h2>(.*?)</h2>", text)] == SECTIONS
    assert "Not available" not in text
    assert text.count(">job, now<") >= 3  # the rows, the model's rows, imputations
    assert "<script" not in text
    assert text.count(html.escape(HOSTILE, quote=False).replace("'", "&#39;")) > 20
    # nothing from elsewhere: every picture is inline, and no address is loaded
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*', text) == []
    assert "url(" not in text
    assert "@import" not in text


def test_numbers_are_those_of_the_library(table, written):
    _, text = written
    evidence = pv.log_evidence(table, rows(1, 40))
    for line in evidence.summary().splitlines():
        assert line in section(text, "log P(x)")
    assert evidence.fingerprint.sha256 in section(text, "How to repeat this report")
    assert evidence.check.summary() in section(text, "Check of the method on this model")
    worst = section(text, "Least likely rows")
    assert rows(1, 40).index[evidence.estimate.argmin()] in worst
    words = section(text, "Comparison with baselines")
    assert "fitted to 60 rows of train, and all are compared on 40" in words
    assert "independent columns" in words
    assert "place of the model among 3" in text
    assert re.search(r"nats a row behind |best by .* nats a row, over ", text)


@pytest.mark.parametrize("place", [1, 2, 3])
def test_the_first_lines_say_where_the_reported_model_stands(place):
    from pyrovae.reporting.sections import _standing

    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(0)) @ torch.tensor(
        [[1.0, 0.9], [0.0, 0.3]]
    )
    full, apart = (
        fitted.fit(x).log_evidence(x)
        for fitted in (pv.baselines.FullGaussian(), pv.baselines.IndependentGaussian())
    )
    far = pv.baselines.IndependentGaussian().fit(x + 3).log_evidence(x)
    names = ["this model" if number == place else f"model {number}" for number in (1, 2, 3)]
    scores = dict(zip(names, (full, apart, far), strict=True))
    one, other = (full, apart) if place == 1 else (full, [full, apart, far][place - 1])
    differences = one.estimate - other.estimate
    distance = f"{differences.mean():.2f} ± {differences.std(ddof=1) / 30**0.5:.2f} nats a row"
    note = f"best by {distance}, over model 2" if place == 1 else f"{distance} behind model 1"
    found = _standing(pv.compare(scores, training_rows=True))
    assert found == ("place of the model among 3", str(place), note)


def test_independent_columns_are_the_marginals_of_their_families(table):
    from scipy.stats import norm

    from pyrovae.reporting.baselines import independent_columns

    train, x = rows(2), rows(1, 40)
    found = independent_columns(table, train, x)
    number, job = train[HOSTILE, "b"], train["job", "now"].dropna()
    share = x["job", "now"].map(job.value_counts(normalize=True))
    expected = norm(number.mean(), number.std(ddof=0)).logpdf(x[HOSTILE, "b"]) + np.log(share.fillna(1.0))
    assert np.allclose(
        found.estimate, expected, atol=0.08
    )  # of 60 rows, 12 missing cells are filled with others
    assert (found.kind == "exact").all()
    assert found.observed.sum() == x.notna().to_numpy().sum()


@pytest.mark.skipif(BROWSER is None, reason="no Chromium: Debian has it in the package chromium")
@pytest.mark.parametrize("width", [400, 1400])
def test_a_browser_shows_it_without_an_error(written, width, tmp_path):
    """In a frame of that width, because a browser's own window may not get as narrow."""
    path, _ = written
    page = tmp_path / "page.html"
    script = (
        "const f = document.querySelector('iframe'); f.onload = () => { const d = f.contentDocument; "
        "document.title = [d.documentElement.scrollWidth, "
        "[...d.images].filter(i => !i.complete || !i.naturalWidth).length, d.images.length].join(' ') }"
    )
    # In the page itself, so that both are of one origin.
    inner = html.escape(path.read_text(encoding="utf-8"))
    page.write_text(
        f'<iframe style="border:0;width:{width}px;height:900px" srcdoc="{inner}"></iframe><script>{script}</script>'
    )
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--dump-dom",
    ]
    run = subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    console = [line for line in run.stderr.splitlines() if "CONSOLE" in line]
    assert console == []
    (found,) = re.findall(r"<title>(\d+) (\d+) (\d+)</title>", run.stdout)
    assert int(found[0]) <= width  # nothing makes the page wider than the window
    assert int(found[1]) == 0
    assert int(found[2]) >= 7


def model(x, shift):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal((z + shift)[:, None], 1.0).expand([len(x), 4]).to_event(1), obs=x)


def guide(x, shift):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((x.mean(1) - shift) * 0.8, 0.45))


def report_of_a_pair(path, chunked):
    """A report on a pair of plain functions with context; its text."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, generator=generator) + torch.randn(30, 1, generator=generator)
    given = {"x": x, "shift": torch.arange(30.0) % 2}
    options = {"image_shape": (2, 2), "color": ["a", "b"] * 15, "command": "make report"}
    pair = pv.LatentVariableModel(model, guide)
    pv.report(pair, [given] if chunked else given, path, method="importance", **options)
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def of_a_pair(tmp_path_factory):
    return report_of_a_pair(tmp_path_factory.mktemp("pair") / "report.html", chunked=False)


def test_a_pair_with_context_is_reported(of_a_pair):
    assert "Not available: the model has no record of a fit" in section(of_a_pair, "Training")
    assert of_a_pair.count("Not available") == 1
    assert "given shift" in section(of_a_pair, "Data and families")
    words = section(of_a_pair, "Comparison with baselines")
    assert "PPCA(3)" in words
    assert "fitted to 15 other rows of x, and all are compared on 15" in words
    assert "make report" in section(of_a_pair, "How to repeat this report")
    assert "reconstructions" in of_a_pair


def test_the_same_rows_give_the_same_bytes_in_chunks_too(of_a_pair, tmp_path):
    assert report_of_a_pair(tmp_path / "report.html", chunked=True) == of_a_pair


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("missing/report.html", "its folder has to exist"),
        (".", "no file, but a folder"),
        ("file/report.html", "path: expected"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_anything_runs(
    table, tmp_path, monkeypatch, place, message
):
    (tmp_path / "file").write_text("kept")
    monkeypatch.setitem(pv.report.__wrapped__.__globals__, "Contents", lambda *_: pytest.fail("computed"))
    with pytest.raises(OSError, match=message):
        pv.report(table, rows(1), tmp_path / place)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failure_leaves_the_earlier_report(table, tmp_path, monkeypatch):
    monkeypatch.setitem(pv.evidence.METHODS, "importance", lambda *_, **__: pytest.fail("computed"))
    path = tmp_path / "report.html"
    path.write_text("earlier")
    with pytest.raises(Refused, match="train: expected rows that are not in x, got 40 of the 40 rows of x"):
        pv.report(table, rows(1, 40), path, train=rows(1, 40), method="importance", num_rows=4)
    assert path.read_text() == "earlier"
    assert len(list(tmp_path.iterdir())) == 1


def test_objects_are_escaped_in_notebooks_and_keep_their_columns(table):
    x = rows(1, 30)
    evidence = dataclasses.replace(
        pv.log_evidence(table, x, method="importance", num_samples=100, check=False), reasons=(HOSTILE,)
    )
    found = evidence._repr_html_()
    for name in evidence.to_frame().columns:
        assert f">{name}<" in found
    diagnosis = pv.diagnose(table, x, num_samples=100)
    comparison = pv.compare({HOSTILE: evidence, "again": evidence})
    for shown in (found, diagnosis._repr_html_(), comparison._repr_html_()):
        assert "<script" not in shown
        assert "&lt;script&gt;" in shown
        assert ">…<" not in shown
        assert ">...<" not in shown
    assert "KL(q(z) ‖ P(z))" in diagnosis._repr_html_()


def test_long_frames_say_how_much_is_left_out():
    grid = pages.Grid.of(pd.DataFrame({"a_b": range(30)}), "Rows.", most=4)
    assert grid.head == ("index", "a_b")
    assert grid.lines[-1] == ("3", "3")
    assert grid.caption == "Rows. 26 more lines are not shown."


@pytest.mark.parametrize("row", range(8))
def test_baselines_are_fitted_to_two_cells_of_every_column(row):
    """Without train, even if a column has no others."""
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    x[:, 2] = torch.nan
    x[[row, (row + 3) % 8], 2] = torch.tensor([1.0, 2.0])
    few = np.arange(8)[::-1]
    observed = ~x.isnan()
    for count in range(1, 6):
        compared = leaving_cells(few[:count], observed)
        fitted = np.setdiff1d(np.arange(8), compared)
        assert observed[fitted, 2].sum() == 2
        assert set(compared) <= set(few[:count])
        assert len(compared) >= count - 2  # two rows are enough for one column


@pytest.mark.slow
def test_a_report_compares_rows_with_a_rare_column(tmp_path, unchecked):
    """Of two baselines, one that refuses the rows is named, and the other is compared."""
    with noise.seeded(noise.derive(0, noise.Stream.DATA)):
        compared = torch.randperm(40)[:20]
    x = torch.randn(40, 3)
    x[:, 2] = torch.nan
    x[compared[:4], 2] = torch.tensor([1.0, 2.0, 4.0, 3.0])
    model = pv.VAE.mlp(3, 1, "gaussian", (), scale="shared")
    pv.report(model, x, tmp_path / "report.html", method="importance", num_rows=40)
    found = section((tmp_path / "report.html").read_text(encoding="utf-8"), "Comparison with baselines")
    assert "Baselines are fitted to 22 other rows of x, and all are compared on 18." in found
    assert "PPCA(2): not available: x: expected rows that fill more than 2 dimensions" in found
    assert "independent Gaussians" in found


def test_panels_of_missing_cells_show_the_observed_cells_of_every_row(monkeypatch):
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    x[:10, 1] = torch.nan  # no row with a missing cell has an observed one in its column
    panels = []
    draw = sections.plots.imputation
    monkeypatch.setattr(
        sections.plots, "imputation", lambda *given, **named: panels.append(draw(*given, **named)[0])
    )
    vae = pv.VAE.mlp(2, 1, likelihood="gaussian", hidden_dims=(4,))
    for rows in (x, {"x": x.nan_to_num(), "observed": ~x.isnan()}):
        contents = Contents(vae, rows, None, None, None, "importance", 30, 0, False)
        sections._imputed(contents, sections.Section("Missing cells"))
        shares = panels[-1].patches[0].get_data()
        inside = (x[10:, 1] >= shares.edges[0]) & (x[10:, 1] <= shares.edges[-1])
        assert shares.values.sum() == pytest.approx(float(inside.double().mean()))
        assert shares.values.sum() > 0.8
