"""Malformed input to every public function, class, method and command is refused before anything is touched.

``CASES`` says for every public callable how it is called well, and of what kind each argument is; ``KINDS`` says
for every kind what is malformed. Each refusal has all its parts, names the argument, and comes from pyrovae.
"""

import functools
import inspect
import io
import math
import re
import traceback
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import families
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from pyro.infer import JitTrace_ELBO, ReweightedWakeSleep
from torch.distributions import constraints
from typer.testing import CliRunner

import pyrovae as pv
from pyrovae import baselines, convert, datasets, encoders, evidence, likelihoods, plots, priors
from pyrovae.baselines.base import ClosedForm
from pyrovae.cli import app
from pyrovae.networks import REGISTRY as NETWORKS
from pyrovae.refusals import Refused
from pyrovae.rows import as_tensor

PACKAGE = Path(pv.__file__).parent
ROWS, COLUMNS = 24, 6

#: "argument: expected …, got …. Mend."
PARTS = re.compile(
    r"(?P<argument>[^\s:]+): expected (?P<expected>.+?), got (?P<came>.+?)\. (?P<mend>\S.+[.)])", re.S
)

# ---------------------------------------------------------------------------------------------------------
# Things to call with


@functools.cache
def world():
    """What good calls need, made once: refusals change none of it, which every test here checks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = (torch.rand(ROWS, COLUMNS) < 0.5).float()
        real = torch.randn(ROWS, COLUMNS)
        vae = pv.VAE.mlp(COLUMNS, 2, hidden_dims=(4,))
        gaussian = pv.VAE.mlp(COLUMNS, 2, "gaussian", hidden_dims=(), standardize=True)
        binary = baselines.IndependentBernoulli().fit(x)
        ppca = baselines.PPCA(2).fit(real)
        score = pv.log_evidence(vae, x, num_samples=20, check=False)
    return {
        "x": x,
        "real": real,
        "counts": x.double(),
        "vae": vae,
        "gaussian": gaussian,
        "binary": binary,
        "ppca": ppca,
        "score": score,
        "total": binary.marginal_likelihood(),
        "axes": Figure().subplots(),
        "history": pd.DataFrame({"epoch": [1], "elbo": [-1.0], "rate": [0.1], "reconstruction": [-0.9]}),
        "table": pv.compare({"a": score, "b": binary}, x, training_rows=True, check=False),
        "convergence": evidence.convergence(vae, x, num_samples=(5, 10)),
    }


def a(name):
    """The argument of that name out of ``world``, made when it is needed."""
    return lambda: world()[name]


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z[:, None], 1.0).expand([len(x), COLUMNS]).to_event(1), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.mean(1), 1.0))


# ---------------------------------------------------------------------------------------------------------
# What is malformed, by kind


def spoilt(change, name="x"):
    """Good rows with something done to them."""

    def make():
        x = world()[name].clone()
        return change(x)

    return make


def put(values):
    def change(x):
        for place, value in values.items():
            x[place] = value
        return x

    return spoilt(change)


def masked(x):
    return np.ma.MaskedArray(x.numpy(), mask=np.eye(ROWS, COLUMNS, dtype=bool))


def frame(x, **columns):
    return pd.DataFrame(x.numpy()).assign(**columns)


NAN_AT = {(4, 2): math.nan, (5, 0): math.nan, (23, 5): math.inf}

ANY_ROWS = {
    "NaN": put(NAN_AT),
    "+inf": put({(3, 1): math.inf}),
    "-inf": put({(3, 1): -math.inf}),
    "NaN in an array": spoilt(lambda x: np.where(np.eye(ROWS, COLUMNS) > 0, np.nan, x.numpy())),
    "NaN in a frame": spoilt(lambda x: frame(x, extra=math.nan)),
    "no rows": spoilt(lambda x: x[:0]),
    "no columns": spoilt(lambda x: x[:, :0]),
    "one number": spoilt(lambda x: x[0, 0]),
    "a Python number": lambda: 1.0,
    "complex": spoilt(lambda x: x * (1 + 1j)),
    "complex array": spoilt(lambda x: x.numpy() * 1j),
    "sparse": spoilt(lambda x: x.to_sparse()),
    "meta": spoilt(lambda x: x.to("meta")),
    "text": lambda: "rows",
    "bytes": lambda: b"rows",
    "None": lambda: None,
    "list": spoilt(lambda x: x.tolist()),
    "ragged": lambda: [[1.0, 0.0], [1.0]],
    "objects": spoilt(lambda x: x.numpy().astype(object)),
    "strings": spoilt(lambda x: x.numpy().astype(str)),
    "dates": spoilt(lambda x: x.numpy().astype("datetime64[s]")),
    "masked": spoilt(masked),
    "a frame with text": spoilt(lambda x: frame(x, name="a")),
    "a frame with dates": spoilt(lambda x: frame(x, when=pd.Timestamp(2020, 1, 1))),
    "a set": lambda: {1.0, 2.0},
    "a function": lambda: len,
    "a generator": lambda: (row for row in ()),
    "a dict without x": spoilt(lambda x: {"rows": x}),
    "an empty dict": dict,
    "a class": lambda: torch.Tensor,
    "an object": object,
}
#: For models that take NaN as a missing cell.
HOLES_ALLOWED = {what: value for what, value in ANY_ROWS.items() if what not in ("NaN in an array", "masked")}

OTHER_WIDTHS = {
    "too narrow": spoilt(lambda x: x[:, :-1]),
    "too wide": spoilt(lambda x: torch.cat([x, x[:, :1]], 1)),
    "wide images": spoilt(lambda x: x[:, :4].reshape(ROWS, 2, 2)),
    "a vector": spoilt(lambda x: x[:, 0]),
}
NOT_BINARY = {
    "grey": put({(2, 3): 0.5}),
    "two": put({(2, 3): 2.0}),
    "minus one": put({(2, 3): -1.0}),
    "huge whole numbers": spoilt(lambda x: x.long() * 2**62),
}
NOT_FLOAT32 = {
    "float64": spoilt(lambda x: x.double()),
    "float16": spoilt(lambda x: x.half()),
    "bfloat16": spoilt(lambda x: x.bfloat16()),
}
NOT_ALIGNED = {
    "an offset nobody takes": spoilt(lambda x: {"x": x, "offset": x[:, 0]}),
    "a short offset": spoilt(lambda x: {"x": x, "offset": x[1:, 0]}),
    "a NaN offset": spoilt(lambda x: {"x": x, "offset": x[:, 0] * math.nan}),
    "a single offset": spoilt(lambda x: {"x": x, "offset": torch.tensor(1)}),
    "a text offset": spoilt(lambda x: {"x": x, "offset": "none"}),
    "a name that is no string": spoilt(lambda x: {"x": x, 3: x}),
    "a name that is no word": spoilt(lambda x: {"x": x, "off set": x}),
    "bad rows in a dict": spoilt(lambda x: {"x": x / 0}),
}


def values(*found):
    return {f"{value!r:.30}": functools.partial(lambda value: value, value) for value in found}


NO_NUMBER = values("10", "", [3], (1,), {1}, {}, 1j, b"1", len, torch.nn.Linear) | {
    "a 0-d tensor": lambda: torch.tensor(3),
    "an array": lambda: np.array([3, 4]),
    "an object": object,
}
NOT_INTEGER = NO_NUMBER | values(True, 1.5, 2.0, math.nan, math.inf, np.float64(3.0), np.bool_(True))
NOT_COUNT = NOT_INTEGER | values(None, 0, -1, -(10**30), 10**30, np.int64(-3))
NOT_POSITIVE = NO_NUMBER | values(
    None, True, 0, 0.0, -1.0, -1, math.nan, math.inf, -math.inf, 10**400, np.float32(-1.0), "shared "
)
NOT_NAME = values(
    "no such", "", " ", None, True, 3, 0, 1.5, b"mlp", [], ["importance"], ("importance",), {}, len
) | {
    "an array of names": lambda: np.array(["importance", "exact"]),
    "an object": object,
}
NOT_MODULE = values(None, "relu", 3, 0.5, [], {}, len, torch.nn.Linear, True) | {
    "a tensor": lambda: torch.ones(3)
}
NOT_PAIR = (
    NOT_MODULE
    | values(model, (model, guide))
    | {
        "a class": lambda: pv.VAE,
        "a network": lambda: pv.MLP(COLUMNS, (), 4),
        "rows": a("x"),
    }
)
NOT_WIDTHS = values(
    None, 5, 2.5, "64", b"64", True, (0,), (-1,), (8.5,), (8.0,), (True,), ("8",), [None], {8}, len
) | {
    "(10**30,)": lambda: (10**30,),
    "a generator": lambda: (width for width in (8,)),
}
NOT_IMAGE = NOT_WIDTHS | values((), (28,), (28, 28), (1, 28, 28, 1), (0, 28, 28), (1, 28, -28))
NOT_SPREAD = NOT_POSITIVE | values("wide", "Shared")
NOT_PATH = values(None, 3, 1.5, True, [], {}, len, b"folder", "", "a\0b") | {"a class": lambda: Path}
NOT_MODELS = values(None, [], {}, (), "vae", 3, len) | {
    "a model": a("vae"),
    "a list of models": lambda: [world()["vae"]],
    "a class": lambda: {"a": baselines.PPCA},
    "no model": lambda: {"a": None},
    "text": lambda: {"a": "vae"},
    "a number": lambda: {"a": 3.0},
    "a network": lambda: {"a": pv.MLP(COLUMNS, (), 4)},
    "an unfitted baseline": lambda: {"a": baselines.PPCA(2)},
}
NOT_EVIDENCE = values(None, "score", 3.0, [], {}) | {
    "rows": a("x"),
    "a model": a("vae"),
    "an array": lambda: np.ones(3),
}

KINDS = {
    "frame of training rows": values(None, 3, "df", [], {}, len)
    | {
        "rows": a("x"),
        "an empty frame": pd.DataFrame,
        "a frame without rows": lambda: pd.DataFrame({"a": []}),
        "a frame of objects": lambda: pd.DataFrame({"a": [object(), object()]}),
        "a class": lambda: pd.DataFrame,
    },
    "families of columns": values(
        3,
        "gaussian",
        ["gaussian"],
        {"c": "gaussian"},
        {"a": 3},
        {"a": "no such"},
        {"a": ("gaussian", 3)},
        {"a": ("gaussian", {"scale": -1.0})},
        {"a": ("poisson", {"offset": True})},
        {"b": "gaussian"},
        {"a": None, "b": None},
    ),
    "resolutions": values(
        0.5, [0.5], {"c": 1}, {"b": 1}, {"a": 0}, {"a": -0.5}, {"a": "1"}, {"a": 1}, {"a": math.inf}
    ),
    "count": NOT_COUNT,
    "count or None": {k: v for k, v in NOT_COUNT.items() if k != "None"},
    "two or more": NOT_COUNT | values(1),
    "eight or more": NOT_COUNT | values(7),
    "hundred or more": NOT_COUNT | values(99),
    "thousand or more": NOT_COUNT | values(999),
    "seed": {k: v for k, v in NOT_COUNT.items() if k not in ("0", f"{10**30!r:.30}")} | values(2**70),
    "seed or None": {k: v for k, v in NOT_COUNT.items() if k not in ("0", "None", f"{10**30!r:.30}")}
    | values(2**70),
    "positive": NOT_POSITIVE,
    "positive or None": {k: v for k, v in NOT_POSITIVE.items() if k != "None"},
    "zero or positive": {k: v for k, v in NOT_POSITIVE.items() if k not in ("0", "0.0")},
    "share": {k: v for k, v in NOT_POSITIVE.items() if k not in ("0", "0.0")} | values(1, 1.0, 1.5),
    "below one": NOT_POSITIVE | values(1, 1.0, 1.5),
    "auto or flag": values(None, 0, 1, 1.0, "yes", "False", [], [True], math.nan, len),
    "executor": values(0, "processes", [], {}) | {"a function that returns none": lambda: lambda: None},
    "flag": values(None, 0, 1, 1.0, "yes", "False", [], [True], math.nan, len)
    | {"a tensor": lambda: torch.tensor(True)},
    "name": NOT_NAME,
    "columns": values("a", 3, [], [COLUMNS], [-1], ["b"], [0, 0], [1.0], [True], [None], len),
    "name or None": {k: v for k, v in NOT_NAME.items() if k != "None"},
    "callbacks": values(None, len, 3, "ab", [1], [len, None], {len}, {"a": len}),
    "rule or positive": NOT_POSITIVE | values("wide", None),
    "tile": values(
        5, 1.5, "ab", (1,), (1, 2, 3), (0, 4), (4, -1), ("a", "b"), (1.5, 2), {3, 4}, {1: 1, 2: 2}, (True, 1)
    )
    | {"a tensor": lambda: torch.tensor([2, 2])},
    "module": NOT_MODULE,
    "pair": NOT_PAIR,
    "widths": NOT_WIDTHS,
    "image": NOT_IMAGE,
    "spread": NOT_SPREAD,
    "standardize": values("x", 3, True, 1.5, [], len) | {"a network": lambda: pv.MLP(6, (), 6)},
    "path": NOT_PATH,
    "checkpoint": {k: v for k, v in NOT_PATH.items() if k != "None"},
    "rows": ANY_ROWS,
    "rows with holes": {what: value for what, value in HOLES_ALLOWED.items() if what != "NaN in a frame"},
    "rows of a pair": HOLES_ALLOWED | OTHER_WIDTHS | NOT_BINARY | NOT_FLOAT32 | NOT_ALIGNED,
    "rows of an encoder": HOLES_ALLOWED | OTHER_WIDTHS | NOT_FLOAT32,
    "validation": {
        k: v for k, v in (HOLES_ALLOWED | OTHER_WIDTHS | NOT_BINARY | NOT_FLOAT32).items() if k != "None"
    },
    "rows or None": {k: v for k, v in (ANY_ROWS | NOT_BINARY).items() if k != "None"},
    "test rows": {k: v for k, v in (HOLES_ALLOWED | OTHER_WIDTHS | NOT_BINARY).items() if k != "None"},
    "rows of a baseline": ANY_ROWS | OTHER_WIDTHS,
    "binary rows": ANY_ROWS | OTHER_WIDTHS | NOT_BINARY,
    "rows to fit": ANY_ROWS,
    "rows of a baseline with holes": HOLES_ALLOWED | OTHER_WIDTHS,
    "binary rows with holes": HOLES_ALLOWED | OTHER_WIDTHS | NOT_BINARY,
    "rows to fit with holes": HOLES_ALLOWED,
    "callable": values(None, 3, "model", [], {}, True) | {"a tensor": lambda: torch.ones(2)},
    "models": NOT_MODELS,
    "evidence": NOT_EVIDENCE,
    "sizes": values(None, 5, "10", (), [], (1,), (0,), (2.5,), ("10",), (True,), (None,), {10}, len),
    "families": values(
        None,
        (),
        [],
        "poisson",
        3,
        ["no such"],
        [3],
        [None],
        [("poisson",)],
        [("gaussian", 3)],
        ["gaussian", 3],
        {},
        len,
    )
    | values(
        [("gaussian", {"scale": -1.0})],
        [("gaussian", {"levels": 3})],
        [("binomial", {})],
        [("gaussian", {3: 4})],
    ),
    "loss": values(3, "elbo", True, [], pyro.infer.Trace_ELBO, len)
    | {"another": lambda: ReweightedWakeSleep(), "a frozen one": lambda: JitTrace_ELBO()},
    "optimizer": values(None, 3, "adam", [], len, torch.nn.Linear, torch.optim.LBFGS)
    | {
        "Pyro's": lambda: pyro.optim.Adam({"lr": 1e-3}),
        "an instance": lambda: torch.optim.Adam([torch.ones(1)]),
    },
    "scheduler": values(3, "cosine", True, [], len, torch.optim.lr_scheduler.StepLR, lambda optimizer: None),
    "labels": values("a", 3, len, ["a"], [])
    | {"a table": lambda: np.zeros((ROWS, 2)), "too few": lambda: range(ROWS - 1)},
    "axes": values(3, "axes", [], len) | {"a figure": Figure},
    "result": values(None, 3, "ab", [], {}, len),
    "result or None": values(3, "ab", [], {}, len),
    "table": values(None, 3, "ab", [], {}, len) | {"other columns": spoilt(lambda x: x[:, :2])},
    "columns to draw": values(3, "ab", [], {}, len, ["no"], [7], [[]]),
    "a label for each row": values(3, "ab", [], len, ["a"], range(ROWS - 1)),
    "frame": values(None, 3, "frame", [], {}, len)
    | {"without columns": pd.DataFrame, "others": lambda: pd.DataFrame({"a": [1]})},
    "images": ANY_ROWS | {"another size": spoilt(lambda x: x[:, :-1])},
    "height and width": values(
        None, 3, "ab", (), (3,), (2, 0), (2, -3), (2.0, 3), (1, 2, 3), ("2", "3"), (5, 5)
    ),
    "height and width or None": values(
        3, "ab", (), (3,), (2, 0), (2, -3), (2.0, 3), (1, 2, 3), ("2", "3"), (5, 5)
    ),
    "limits": values(3, "ab", (), (1,), (1, 0), (0, 0), (0, math.nan), (0, math.inf), ("0", "1"), (0, 1, 2)),
    "text": values(None, 3, 1.5, [], True, len, b"title"),
    "evidences": values(None, 3, "ab", [], (), [3], [("a",)], [("a", 3)], {}, len),
    "text or None": values(3, 1.5, [], True, len, b"title"),
    "train": {
        what: value for what, value in (HOLES_ALLOWED | OTHER_WIDTHS | NOT_BINARY).items() if what != "None"
    }
    | {"rows of x": a("x")},
    "name of a plate": values(3, "", [], True, len, b"data"),
    "params": values(3, "store", [], True, len, {"a": 1}) | {"tensors": lambda: {"a": torch.ones(1)}},
    "categories": {k: v for k, v in NOT_COUNT.items() if k not in ("None", "[3]", "(1,)")}
    | values((2, 2), [2] * 5 + [0], [2] * 5 + [2.0], [2] * 5 + ["2"], [2] * 7, ()),
    "numbers": {
        k: v
        for k, v in NOT_POSITIVE.items()
        if k not in ("0", "0.0", "-1.0", "-1", "np.float32(-1.0)", "(1,)", "[3]")
    }
    | values([0.0] * 5, [math.nan] * 6, ["0"] * 6, [True] * 6, ()),
    "positives": {k: v for k, v in NOT_POSITIVE.items() if k not in ("(1,)", "[3]")}
    | values([1.0] * 5, [0.0] * 6, [math.nan] * 6, ["1"] * 6, ()),
    "offset": values(None, "offset", 3, []),
    "levels": ANY_ROWS | {"negative": put({(1, 1): -1.0}), "too high": put({(1, 1): 256.0})},
}

# ---------------------------------------------------------------------------------------------------------
# Every public callable


@dataclass(frozen=True)
class Case:
    """How a public callable is called well, and of what kind its arguments are."""

    call: Any
    good: dict[str, Any] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    #: Names under which refusals speak of an argument, where the callable hands it on.
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    #: Malformed elsewhere, taken here on purpose: (argument, value) with the reason beside it.
    taken: frozenset[tuple[str, str]] = frozenset()

    def arguments(self, **changed):
        made = {name: value() if callable(value) else value for name, value in self.good.items()}
        return made | changed


PAIR = {"pair": a("vae"), "x": a("x")}
OF_A_PAIR = {"pair": "pair", "x": "rows of a pair", "seed": "seed"}
TILED = {**OF_A_PAIR, "tile": "tile"}
SLOW = {**TILED, "progress": "flag"}
ESTIMATOR = {**SLOW, "check": "flag"}
KEPT = {"method": "name", "num_samples": "hundred or more", "seed": "seed", "check": "flag"}
SHOWN = {**KEPT, "progress": "flag"}


def network(out, inputs=2):
    return lambda: pv.MLP(inputs, (4,), out)


def estimator(function, **kinds):
    kinds |= {
        name: kind
        for name, kind in {
            "checkpoint": "checkpoint",
            "compile": "auto or flag",
            "noise": "name",
            "executor": "executor",
        }.items()
        if name in inspect.signature(function).parameters
    }
    return Case(function, PAIR, kinds)


def fitted(cls, good=None, rows="real", kind="rows of a baseline"):
    """The methods of a fitted baseline."""

    @functools.cache
    def baseline():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return cls(**(good or {})).fit(world()[rows])

    def log_evidence(x):
        return baseline().log_evidence(x)

    def sample(**arguments):
        return baseline().sample(**arguments)

    def fit(x):
        return cls(**(good or {})).fit(x)

    def draw_missing(**arguments):
        return baseline().draw_missing(**arguments)

    name, to_fit, more = cls.__name__, "rows to fit", {}
    if cls.takes_missing:
        kind, to_fit = f"{kind} with holes", "rows to fit with holes"
        kinds = {"x": kind, "num_draws": "count", "seed": "seed"}
        more[f"baselines.{name}.draw_missing"] = Case(draw_missing, {"x": a(rows)}, kinds)
    return more | {
        f"baselines.{name}.fit": Case(fit, {"x": a(rows)}, {"x": to_fit}),
        f"baselines.{name}.log_evidence": Case(log_evidence, {"x": a(rows)}, {"x": kind}),
        f"baselines.{name}.sample": Case(sample, {"num_rows": 3}, {"num_rows": "count", "seed": "seed"}),
    }


def figure(function, aliases=None, **arguments):
    """A plot function; ``arguments`` are pairs of a good value and a kind."""
    good = {name: value for name, (value, _) in arguments.items()} | {"ax": a("axes")}
    kinds = {name: kind for name, (_, kind) in arguments.items()} | {"ax": "axes"}
    return Case(function, good, kinds, aliases or {})


@functools.cache
def diagnosed():
    return pv.diagnose(world()["vae"], world()["x"], num_samples=100)


@functools.cache
def imputed():
    x = world()["x"].clone()
    x[0, 0] = math.nan
    return pv.impute(world()["vae"], x, num_imputations=2, num_samples=100, check=False)


def checked():
    return evidence.Check("importance", 2, 0, 0, 2, True, None, np.array([-1.0, -2.0]), 0, 0)


CASES = {
    # networks
    "MLP": Case(
        pv.MLP,
        {"in_features": 3, "hidden_dims": (4,), "out_features": 2},
        {
            "in_features": "count",
            "hidden_dims": "widths",
            "out_features": "count",
            "activation": "name",
            "normalization": "name",
            "dropout": "share",
            "shortcut": "flag",
        },
    ),
    "ConvEncoder": Case(
        pv.ConvEncoder,
        {"in_shape": (1, 4, 4), "out_features": 4},
        {"in_shape": "image", "out_features": "count", "channels": "widths", "activation": "name"},
    ),
    "ConvDecoder": Case(
        pv.ConvDecoder,
        {"in_features": 2, "out_shape": (1, 4, 4)},
        {
            "in_features": "count",
            "out_shape": "image",
            "outputs_per_dimension": "count",
            "channels": "widths",
            "activation": "name",
            "flat": "flag",
        },
    ),
    # models
    "VAE": Case(
        pv.VAE,
        {
            "prior": lambda: priors.StandardNormal(2),
            "likelihood": lambda: likelihoods.Bernoulli(pv.MLP(2, (), 6)),
            "encoder": lambda: encoders.DiagonalNormal(pv.MLP(6, (), 4)),
        },
        {"prior": "module", "likelihood": "module", "encoder": "module"},
    ),
    "VAE.mlp": Case(
        pv.VAE.mlp,
        {"data_dim": 6, "latent_dim": 2},
        {
            "data_dim": "count",
            "latent_dim": "count",
            "likelihood": "name",
            "hidden_dims": "widths",
            "activation": "name",
            "prior": "name",
            "encoder": "name",
            "standardize": "flag",
            "missing": "flag",
        },
    ),
    "VAE.for_table": Case(
        pv.VAE.for_table,
        {"df": lambda: pd.DataFrame({"a": [0.5, 2.0, 3.5], "b": ["x", "y", "x"]}), "latent_dim": 1},
        {
            "df": "frame of training rows",
            "latent_dim": "count",
            "families": "families of columns",
            "resolution": "resolutions",
            "hidden_dims": "widths",
            "activation": "name",
            "prior": "name",
            "encoder": "name",
        },
        aliases={
            "df": ("df['a']",),
            "families": ("families['a']", "families['b']", "scale", "offset", "df"),
            "resolution": ("resolution['a']", "resolution['b']", "df['a']"),
        },
    ),
    "VAE.sample": Case(
        lambda **arguments: world()["vae"].sample(**arguments),
        {"num_rows": 3},
        {"num_rows": "count", "seed": "seed", "offset": "offset"},
    ),
    "VAE.reconstruct": Case(
        lambda **arguments: world()["vae"].reconstruct(**arguments),
        {"x": a("x")},
        {"x": "rows of a pair", "seed": "seed"},
        # What is reconstructed need not be possible: any row that the encoder takes has a nearest one.
        taken=frozenset(("x", what) for what in ("grey", "two", "minus one")),
    ),
    "LatentVariableModel": Case(
        pv.LatentVariableModel,
        {"model": lambda: model, "guide": lambda: guide},
        {"model": "callable", "guide": "callable", "plate": "name of a plate", "params": "params"},
    ),
    # training
    "fit": Case(
        pv.fit,
        PAIR | {"epochs": 1},
        {
            "pair": "pair",
            "x": "rows of a pair",
            "epochs": "count or None",
            "batch_size": "count",
            "lr": "positive",
            "seed": "seed",
            "loss": "loss",
            "optimizer": "optimizer",
            "scheduler": "scheduler",
            "num_particles": "count",
            "kl_warmup": "seed or None",
            "validation": "validation",
            "patience": "count or None",
            "clip_norm": "positive or None",
            "progress": "flag",
            "checkpoint": "checkpoint",
            "on_nonfinite": "name",
            "compile": "auto or flag",
            "precision": "name",
            "binarize": "flag",
            "callbacks": "callbacks",
        },
    ),
    "Checkpoint": Case(
        pv.Checkpoint,
        {"folder": "runs/a"},
        {"folder": "path", "seconds": "zero or positive"},
        aliases={"folder": ("checkpoint",)},
    ),
    # evaluation
    "log_weights": estimator(pv.log_weights, **TILED, num_samples="count"),
    "elbo": estimator(pv.elbo, **TILED, num_samples="count"),
    "log_evidence": Case(
        pv.log_evidence,
        {"model": a("vae"), "x": a("x")},
        {
            "model": "pair",
            "x": "rows of a pair",
            "method": "name or None",
            "given": "columns",
            **ESTIMATOR,
            "num_samples": "count",
        }
        | {"pareto_smoothed": "flag"},
        aliases={"model": ("pair",)},
    ),
    "impute": Case(
        pv.impute,
        {"model": a("vae"), "x": a("x"), "check": False, "num_samples": 100},
        {"model": "pair", "x": "rows of a pair", "num_imputations": "count", "noise": "name", **SHOWN},
        aliases={"model": ("pair",)},
    ),
    "embed": Case(
        pv.embed,
        {"model": a("vae"), "x": a("x"), "check": False, "num_samples": 100},
        {"model": "pair", "x": "rows of a pair", "noise": "name", **SHOWN},
        aliases={"model": ("pair",)},
    ),
    "outliers": Case(
        pv.outliers,
        {"model": a("vae"), "x": a("x"), "check": False, "num_samples": 100},
        {"model": "pair", "x": "rows of a pair", "cells": "flag", **SHOWN},
        aliases={"model": ("pair",)},
    ),
    "evidence.importance": estimator(
        evidence.importance, **ESTIMATOR, num_samples="count", pareto_smoothed="flag"
    ),
    "evidence.jackknife": estimator(evidence.jackknife, **ESTIMATOR, num_samples="two or more"),
    "evidence.annealed": estimator(
        evidence.annealed, **ESTIMATOR, num_samples="count", num_temperatures="two or more", start="name"
    ),
    "evidence.refined": estimator(
        evidence.refined,
        **ESTIMATOR,
        num_samples="hundred or more",
        family="name",
        num_starts="count",
        num_steps="count",
    ),
    "evidence.quadrature": estimator(evidence.quadrature, **ESTIMATOR, tolerance="positive"),
    "evidence.exact": Case(
        evidence.exact, {"pair": a("gaussian"), "x": a("x")}, {"pair": "pair", "x": "rows of an encoder"}
    ),
    "evidence.auto": estimator(
        evidence.auto, **ESTIMATOR, target_mcse="positive", max_cost="thousand or more"
    ),
    "evidence.check": Case(
        evidence.check,
        PAIR | {"method": "importance", "num_samples": 20},
        {
            "pair": "pair",
            "x": "rows of a pair",
            "method": "name",
            "num_rows": "eight or more",
            "seed": "seed",
            "num_samples": "count",
        },
    ),
    "evidence.from_draws": Case(
        evidence.from_draws,
        {
            "log_density": lambda: lambda u: -(u**2).sum(-1) / 2,
            "draws": lambda: np.random.default_rng(0).normal(size=(2, 200, 2)),
        },
        {"seed": "seed", "warp": "flag"},
    ),
    "evidence.convergence": estimator(evidence.convergence, **ESTIMATOR, num_samples="sizes"),
    "evidence.gaps": estimator(evidence.gaps, **ESTIMATOR, num_samples="hundred or more", family="name"),
    "evidence.sandwich": estimator(
        evidence.sandwich,
        **OF_A_PAIR,
        num_rows="count or None",
        num_samples="two or more",
        num_temperatures="two or more",
        start="name",
        rows="name",
        tolerance="positive",
        progress="flag",
    ),
    "diagnose": estimator(pv.diagnose, **SLOW, num_samples="hundred or more"),
    # comparison
    "compare": Case(
        pv.compare,
        {"models": lambda: {"a": world()["vae"], "b": world()["binary"]}, "x": a("x"), "training_rows": True},
        {
            "models": "models",
            "x": "binary rows with holes",
            "method": "name",
            "seed": "seed",
            "by": "labels",
            "training_rows": "flag",
            "progress": "flag",
            "num_samples": "count",
            "tile": "tile",
        },
        aliases={"models": ("PPCA",)},
    ),
    "compare_evidence": Case(
        pv.compare_evidence,
        {"models": lambda: {"a": world()["binary"]}},
        {"models": "models"},
        aliases={"models": ("PPCA",)},
    ),
    "swap": Case(
        pv.swap,
        {"x": a("x"), "latent_dim": 1, "families": ["bernoulli"], "epochs": 1, "hidden_dims": (2,)},
        {
            "x": "rows to fit with holes",
            "latent_dim": "count",
            "families": "families",
            "x_test": "test rows",
            "hidden_dims": "widths",
            "method": "name",
            "seed": "seed",
            "progress": "flag",
            "executor": "executor",
            "epochs": "count or None",
            "lr": "positive",
            "batch_size": "count",
        },
        aliases={"families": ("scale", "levels", "total_count")},
    ),
    # keeping and converting
    "save": Case(pv.save, {"model": a("vae"), "path": "no such folder/m"}, {"model": "pair", "path": "path"}),
    "load": Case(pv.load, {"path": "no such file"}, {"path": "path"}),
    "LatentVariableModel.save": Case(
        lambda path: world()["vae"].save(path), {"path": "no such folder/m"}, {"path": "path"}
    ),
    "baselines.Baseline.save": Case(
        lambda path: world()["ppca"].save(path), {"path": "no such folder/m"}, {"path": "path"}
    ),
    "convert.to_arviz": Case(
        convert.to_arviz,
        {"model": a("vae"), "x": a("x"), "check": False},
        {
            "model": "pair",
            "x": "rows of a pair",
            "num_draws": "count",
            "predictive": "flag",
            "tile": "tile",
            **KEPT,
            "num_samples": "count",
        },
    ),
    "convert.to_elpd": Case(convert.to_elpd, {"evidence": a("score")}, {"evidence": "evidence"}),
    "convert.stacking_weights": Case(
        convert.stacking_weights, {"scores": lambda: {"a": world()["score"]}}, {"scores": "models"}
    ),
    # priors
    "priors.GaussianMixture": Case(
        priors.GaussianMixture, {"latent_dim": 2}, {"latent_dim": "count", "num_components": "count"}
    ),
    "priors.VampPrior": Case(
        priors.VampPrior,
        {"encoder": lambda: world()["vae"].encoder, "pseudo_inputs": a("x")},
        {"encoder": "module", "pseudo_inputs": "rows"},
    ),
    "priors.Flow": Case(
        priors.Flow,
        {"latent_dim": 2, "hidden_dims": (4,)},
        {"latent_dim": "count", "num_transforms": "count", "hidden_dims": "widths"},
    ),
    # encoders
    **{
        f"encoders.{cls.__name__}": Case(
            cls,
            {"network": network(cls.outputs(2), COLUMNS)},
            {"network": "module", "standardize": "standardize", "missing": "flag"}
            | ({"num_transforms": "count", "hidden_dims": "widths"} if cls is encoders.Flow else {}),
        )
        for cls in encoders.REGISTRY.values()
    },
    # likelihoods
    "likelihoods.suggest": Case(likelihoods.suggest, {"x": a("x")}, {"x": "rows with holes"}),
    "likelihoods.Likelihood.start_from": Case(
        lambda x: world()["vae"].likelihood.start_from(x),
        {"x": a("x")},
        {"x": "rows of a baseline with holes"},
        aliases={"x": ("network",)},
    ),
    # baselines
    "baselines.PPCA": Case(baselines.PPCA, {"latent_dim": 2}, {"latent_dim": "count", "max_iter": "count"}),
    "baselines.FullGaussian": Case(baselines.FullGaussian, {}, {"max_iter": "count"}),
    "baselines.IndependentBernoulli": Case(
        baselines.IndependentBernoulli, {}, {"a": "positive", "b": "positive"}
    ),
    "baselines.FactorAnalysis": Case(
        baselines.FactorAnalysis, {"latent_dim": 1}, {"latent_dim": "count", "max_iter": "count"}
    ),
    "baselines.GaussianMixture": Case(
        baselines.GaussianMixture,
        {"num_components": 2},
        {
            "num_components": "count",
            "covariance": "name",
            "num_starts": "count",
            "max_iter": "count",
            "seed": "seed",
        },
    ),
    "baselines.BernoulliMixture": Case(
        baselines.BernoulliMixture,
        {"num_components": 2},
        {
            "num_components": "count",
            "pseudo_count": "zero or positive",
            "num_starts": "count",
            "max_iter": "count",
            "seed": "seed",
        },
    ),
    "baselines.LatentClass": Case(
        lambda **arguments: baselines.LatentClass(**arguments).fit(world()["x"]),
        {"num_classes": 2},
        {
            "num_classes": "count",
            "num_categories": "categories",
            "pseudo_count": "zero or positive",
            "num_starts": "count",
            "max_iter": "count",
            "seed": "seed",
        },
    ),
    "baselines.DirichletCategorical": Case(
        lambda **arguments: baselines.DirichletCategorical(**arguments).fit(world()["x"]),
        {},
        {"concentration": "positive", "num_categories": "categories"},
    ),
    "baselines.NormalInverseGamma": Case(
        lambda **arguments: baselines.NormalInverseGamma(**arguments).fit(world()["real"]),
        {},
        {"loc": "numbers", "kappa": "positive", "alpha": "positive", "beta": "positives"},
    ),
    "baselines.KernelDensity": Case(baselines.KernelDensity, {}, {"bandwidth": "rule or positive"}),
    "baselines.BayesianLinearRegression": Case(
        baselines.BayesianLinearRegression,
        {},
        {"precision": "positive", "alpha": "positive", "beta": "positive", "intercept": "flag"},
    ),
    "baselines.BayesianPCA": Case(
        baselines.BayesianPCA,
        {"latent_dim": 1},
        {
            "latent_dim": "count",
            "loadings_scale": "positive",
            "loc_scale": "positive",
            "noise_scale": "positive",
            "num_samples": "count",
            "seed": "seed",
        },
    ),
    "baselines.PyroMCMC": Case(
        baselines.PyroMCMC,
        {"model": lambda: model},
        {
            "model": "callable",
            "num_samples": "count",
            "warmup_steps": "count",
            "num_chains": "count",
            "target_accept_prob": "below one",
            "full_mass": "flag",
            "max_tree_depth": "count",
            "seed": "seed",
            "progress": "flag",
        },
    ),
    "baselines.PyroMCMC.fit": Case(
        lambda x: baselines.PyroMCMC(model, num_samples=50).fit(x), {"x": a("real")}, {"x": "rows to fit"}
    ),
    "baselines.BayesianPCA.fit": Case(
        lambda x: baselines.BayesianPCA(1, num_samples=50).fit(x), {"x": a("real")}, {"x": "rows to fit"}
    ),
    **fitted(baselines.PPCA, {"latent_dim": 2}),
    **fitted(baselines.FullGaussian),
    **fitted(baselines.IndependentGaussian),
    **fitted(baselines.FactorAnalysis, {"latent_dim": 1}),
    **fitted(baselines.GaussianMixture, {"num_components": 1, "num_starts": 1}),
    **fitted(baselines.KernelDensity, {"bandwidth": 1.0}),
    **fitted(baselines.NormalInverseGamma),
    **fitted(baselines.BayesianLinearRegression),
    **fitted(baselines.IndependentBernoulli, rows="x", kind="binary rows"),
    **fitted(baselines.BernoulliMixture, {"num_components": 1, "num_starts": 1}, "x", "binary rows"),
    **fitted(baselines.LatentClass, {"num_classes": 1, "num_starts": 1}, "x", "binary rows"),
    **fitted(baselines.DirichletCategorical, rows="x", kind="binary rows"),
    **fitted(baselines.IndependentPoisson, rows="x"),
    **fitted(baselines.IndependentNegativeBinomial, rows="x"),
    # data
    "datasets.digits": Case(datasets.digits, {}, {"kind": "name", "seed": "seed"}),
    "datasets.frey_faces": Case(
        datasets.frey_faces, {"download": False}, {"kind": "name", "seed": "seed", "download": "flag"}
    ),
    "datasets.mnist": Case(datasets.mnist, {"download": False}, {"download": "flag"}),
    "datasets.binarized_mnist": Case(datasets.binarized_mnist, {"download": False}, {"download": "flag"}),
    "datasets.cell_counts": Case(
        datasets.cell_counts,
        {"download": False},
        {"num_genes": "count", "seed": "seed", "download": "flag"},
    ),
    "datasets.binarize": Case(
        datasets.binarize, {"levels": a("x")}, {"levels": "levels", "highest": "positive", "seed": "seed"}
    ),
    # figures
    "plots.training_curves": figure(plots.training_curves, history=(a("history"), "frame")),
    "plots.image_grid": figure(
        plots.image_grid,
        rows=(a("x"), "images"),
        shape=((2, 3), "height and width"),
        columns=(4, "count"),
        limits=(None, "limits"),
        aliases={"rows": ("shape",), "shape": ("rows",)},
    ),
    "plots.reconstructions": figure(
        plots.reconstructions,
        x=(a("x"), "images"),
        reconstructed=(a("x"), "images"),
        shape=((2, 3), "height and width"),
        columns=(4, "count"),
        limits=(None, "limits"),
        aliases={"x": ("shape", "reconstructed"), "shape": ("x",), "reconstructed": ("shape",)},
    ),
    "plots.log_evidence": figure(
        plots.log_evidence, evidence=(a("score"), "result"), simulated=(None, "result or None")
    ),
    "plots.pareto_k": figure(plots.pareto_k, evidences=(lambda: {"a": world()["score"]}, "evidences")),
    "plots.convergence": figure(plots.convergence, frame=(a("convergence"), "frame")),
    "plots.check": figure(plots.check, found=(checked, "result")),
    "plots.compare": figure(plots.compare, table=(a("table"), "frame")),
    "plots.diagnosis": figure(plots.diagnosis, found=(diagnosed, "result")),
    "plots.latent": replace(
        figure(plots.latent, z=(a("x"), "rows"), color=(None, "a label for each row")),
        taken=frozenset({("z", "NaN in a frame")}),  # a latent that a row lacks, in a frame of embed
    ),
    "report": Case(
        pv.report,
        {"x": a("x"), "model": a("vae"), "path": "report.html", "method": "importance"},
        {
            "model": "pair",
            "x": "rows of a pair",
            "path": "path",
            "train": "train",
            "color": "a label for each row",
            "image_shape": "height and width or None",
            "method": "name",
            "num_rows": "two or more",
            "seed": "seed",
            "title": "text",
            "command": "text or None",
            "progress": "flag",
        },
        aliases={"model": ("pair",), "train": ("x",)},
    ),
    "plots.column_distances": Case(
        plots.column_distances,
        {"x": a("x"), "simulated": a("x")},
        {"x": "table", "simulated": "table"},
        aliases={"x": ("simulated",)},
    ),
    "plots.predictive": Case(
        plots.predictive,
        {"x": a("x"), "simulated": a("x"), "columns": [0], "ax": a("axes")},
        {"x": "table", "simulated": "table", "columns": "columns to draw", "ax": "axes"},
        aliases={"x": ("simulated",)},
    ),
    "plots.imputation": Case(
        plots.imputation,
        {"found": imputed, "columns": [0], "x": a("x"), "ax": a("axes")},
        {"found": "result", "columns": "columns to draw", "x": "table", "ax": "axes"},
        taken=frozenset({("x", "None")}),  # the rows of found
    ),
}
#: Kinds of the arguments of families and estimators that have no entry above, by their names.
BY_NAME = dict.fromkeys((*families.REQUIRED, "max_iter", "num_starts"), "count") | {
    "network": "module",
    "standardize": "standardize",
    "offset": "flag",
    "scale": "spread",
    "concentration": "spread",
    "num_categories": "two or more",
    "num_levels": "two or more",
    "levels": "two or more",
    "hidden_dims": "widths",
    "seed": "seed",
}


def unlisted():
    """Cases of all families and estimators, by their registries. An argument that ``BY_NAME`` lacks needs an entry above."""

    def case(cls, **good):
        kinds = {name: BY_NAME[name] for name in inspect.signature(cls).parameters if name in BY_NAME}
        return Case(cls, families.required(cls) | good, kinds)

    for cls in priors.REGISTRY.values():
        yield f"priors.{cls.__name__}", case(cls)
    for cls in likelihoods.REGISTRY.values():
        width = cls.outputs_per_dimension(**families.options_of(cls)[0]) * COLUMNS
        yield f"likelihoods.{cls.__name__}", case(cls, network=network(width))
    for cls in baselines.REGISTRY.values():
        yield f"baselines.{cls.__name__}", case(cls)
        if issubclass(cls, ClosedForm):
            rows = ("real",) if cls.support is constraints.real else ("x", "binary rows")
            yield from fitted(cls, families.required(cls), *rows).items()
    for name, method in evidence.METHODS.items():
        yield f"evidence.{name}", estimator(method, **ESTIMATOR, num_samples="count")


CASES = dict(unlisted()) | CASES

# ---------------------------------------------------------------------------------------------------------
# What a refusal is


@functools.cache
def watched():
    """The pairs of ``world``, their modules and parameters, and arrays on the memory of all tensors: found once."""
    pairs = [world()[name] for name in ("vae", "gaussian")]
    tensors = [value for pair in pairs for value in pair.state_dict().values()]
    return (
        pairs,
        [module for pair in pairs for module in pair.modules()],
        [parameter for pair in pairs for parameter in pair.parameters()],
        [each.numpy() for each in (*tensors, world()["x"], world()["real"])],
    )


def touched():
    """Whatever a refusal must leave alone, as bytes: parameters, generators, Pyro's store, switches, warnings."""
    pairs, modules, parameters, arrays = watched()
    return (
        [array.tobytes() for array in arrays],
        [(module.training, *map(id, module._parameters.values())) for module in modules],
        [pair.fitted is None for pair in pairs],
        [(parameter.grad is None, parameter.data_ptr()) for parameter in parameters],
        torch.random.get_rng_state().numpy().tobytes(),
        np.random.get_state()[1].tobytes(),  # noqa: NPY002 (what others left there is what is watched)
        sorted(pyro.get_param_store().keys()),
        torch.is_grad_enabled(),
        torch.distributions.Distribution._validate_args,
        len(world()["axes"].get_children()),
    )


def why_not_a_refusal(case, argument, value):
    """None where the call is refused with all parts and nothing is touched; else in words what happened."""
    arguments = case.arguments(**{argument: value})
    before = touched()
    try:
        case.call(**arguments)
    except (TypeError, ValueError, OSError) as error:
        text = str(error.args[1] if isinstance(error, OSError) and len(error.args) > 1 else error)
        last = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if PACKAGE not in last.parents:
            return f"raised in {last}: {type(error).__name__}: {text}"
        if isinstance(error, ValueError) and not isinstance(error, Refused):
            return f"a bare ValueError: {text}"
        parts = PARTS.fullmatch(text)
        if parts is None:
            return f"without its parts: {text}"
        names = (argument, *case.aliases.get(argument, ()))
        if parts["argument"] not in names and not (
            isinstance(value, dict) and parts["argument"] in map(str, value)
        ):
            return f"names {parts['argument']}, not {argument}: {text}"
        if touched() != before:
            return f"touched something before it refused: {text}"
        return None
    except Exception as error:
        return f"raised {type(error).__name__}: {error}"
    return "accepted in silence"


TABLE = [
    (name, argument, what)
    for name, case in CASES.items()
    for argument, kind in case.kinds.items()
    for what in KINDS[kind]
    if (argument, what) not in case.taken
]


@pytest.mark.parametrize(
    ("name", "argument"),
    [(name, argument) for name, case in CASES.items() for argument in case.kinds],
    ids=lambda value: value,
)
def test_every_malformed_value_is_refused(name, argument):
    case = CASES[name]
    wrong = {}
    for what, make in KINDS[case.kinds[argument]].items():
        if (argument, what) not in case.taken and (why := why_not_a_refusal(case, argument, make())):
            wrong[what] = why
    assert not wrong, "\n".join(f"{name}({argument}={what}): {why}" for what, why in wrong.items())


# ---------------------------------------------------------------------------------------------------------
# Nothing public is left out

#: What users get and do not build, and what they derive from: no arguments of theirs to check.
RESULTS = {
    "History",
    "Imputation",
    "LogEvidence",
    "evidence.LogEvidence",
    "evidence.Check",
    "evidence.Sandwich",
    "datasets.CellCounts",
    "datasets.LabelledImages",
    "datasets.Split",
    "encoders.Encoder",
    "likelihoods.Likelihood",
    "baselines.Baseline",
}
#: The same function under two names.
AGAIN = {"evidence.log_evidence": "log_evidence"}
#: Arguments that take anything: a model of any class, a path that only has to be a path.
SPARED = {("load", "into")} | {
    # test_from_draws.py has what is refused of these.
    ("evidence.from_draws", name)
    for name in ("log_density", "draws", "variables", "bounds", "x", "measure")
}


def public():
    """Every public callable by its name below pyrovae."""
    found = {}
    for name in pv.__all__:
        thing = getattr(pv, name)
        if not isinstance(thing, ModuleType):
            found[name] = thing
            continue
        for inner in getattr(thing, "__all__", vars(thing)):
            value = vars(thing)[inner]
            own = getattr(value, "__module__", "").startswith(thing.__name__)
            if (inspect.isfunction(value) or inspect.isclass(value)) and own and not inner.startswith("_"):
                found[f"{name}.{inner}"] = value
    return found


def test_every_public_callable_is_in_the_table():
    missing = {name for name in public() if name not in RESULTS and AGAIN.get(name, name) not in CASES}
    assert not missing
    assert set(evidence.METHODS) <= {name.removeprefix("evidence.") for name in CASES}
    for registry, module in (
        (priors, "priors"),
        (likelihoods, "likelihoods"),
        (encoders, "encoders"),
        (baselines, "baselines"),
    ):
        for cls in registry.REGISTRY.values():
            assert f"{module}.{cls.__name__}" in CASES
    assert {cls.__name__ for cls in NETWORKS.values()} - {"Standardize", "Features"} <= set(CASES)
    for cls in baselines.REGISTRY.values():
        assert f"baselines.{cls.__name__}.fit" in CASES


def test_every_argument_is_in_the_table():
    missing = []
    for name, thing in public().items():
        if name in RESULTS or name in AGAIN:
            continue
        for argument, parameter in inspect.signature(thing).parameters.items():
            named = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            if named and argument not in CASES[name].kinds and (name, argument) not in SPARED:
                missing.append(f"{name}({argument})")
    assert not missing


@pytest.mark.parametrize(
    "name", [n for n in CASES if not n.startswith(("datasets.", "swap", "fit", "report", "evidence.gaps"))]
)
def test_the_table_calls_everything_well(name, tmp_path, monkeypatch):
    """A table whose good calls were refused for another reason would show nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no such folder").mkdir()
    if name == "load":
        pv.save(world()["vae"], "no such file")
    quick = (
        {"num_samples": 100, "num_temperatures": 10}
        if name.startswith(("evidence", "diag", "log_ev"))
        else {}
    )
    if name == "evidence.convergence":
        quick = {"num_samples": (5, 10)}
    if name == "evidence.quadrature":
        quick = {"tolerance": 0.3}
    case = CASES[name]
    parameters = inspect.signature(case.call).parameters
    quick = {key: value for key, value in quick.items() if key in parameters}
    if name not in ("baselines.PyroMCMC.fit", "baselines.BayesianPCA.fit"):  # minutes
        case.call(**case.arguments(**quick))


def test_the_table_is_as_long_as_it_has_to_be():
    assert len(TABLE) >= 300


# ---------------------------------------------------------------------------------------------------------
# Malformed values that nobody thought of

OBJECTS = st.one_of(
    st.none(),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.complex_numbers(),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.sets(st.integers(), max_size=2),
    st.dates(),
    st.sampled_from(
        [object(), len, torch.nn.Linear, Ellipsis, NotImplemented, torch.float32, slice(3), range(3)]
    ),
)
NUMBERS = st.one_of(st.integers(), st.floats(), st.booleans())
BAD_SEED = st.one_of(
    st.integers(max_value=-1), st.integers(min_value=2**64), st.floats(), st.booleans(), OBJECTS
)
BAD_COUNT = st.one_of(
    st.integers(max_value=0), st.integers(min_value=2**31), st.floats(), st.booleans(), OBJECTS
)
BAD_POSITIVE = st.one_of(
    st.integers(max_value=0),
    st.floats(max_value=0.0),
    st.sampled_from([math.nan, math.inf, -math.inf, 10**309]),
    st.booleans(),
    OBJECTS,
)
BAD_WIDTHS = st.one_of(
    st.lists(st.integers(1, 8), max_size=3).flatmap(
        lambda good: st.tuples(BAD_COUNT, st.integers(0, len(good))).map(
            lambda at: [*good[: at[1]], at[0], *good[at[1] :]]
        )
    ),
    NUMBERS,
    OBJECTS.filter(lambda value: not isinstance(value, list | range)),
)


@st.composite
def bad_rows(draw, bad=(math.nan, math.inf, -math.inf)):
    """Rows with NaN or ±inf somewhere, of any shape and kind, or no rows at all."""
    if draw(st.booleans()):
        return draw(
            st.one_of(NUMBERS, OBJECTS.filter(lambda value: not isinstance(value, dict) or "x" not in value))
        )
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    values = torch.zeros(shape)
    places = draw(st.lists(st.integers(0, values.numel() - 1), min_size=1, max_size=4))
    values.view(-1)[places] = draw(st.sampled_from(bad))
    if draw(st.booleans()):
        return values.numpy()
    if len(shape) == 2 and draw(st.booleans()):
        return pd.DataFrame(values.numpy())
    return {"x": values} if draw(st.booleans()) else values


ANYTHING = st.one_of(NUMBERS, OBJECTS)
DRAWN = {
    "count": BAD_COUNT,
    "two or more": BAD_COUNT | st.just(1),
    "eight or more": BAD_COUNT | st.integers(1, 7),
    "hundred or more": BAD_COUNT | st.integers(1, 99),
    "thousand or more": BAD_COUNT | st.integers(1, 999),
    "seed": BAD_SEED,
    "positive": BAD_POSITIVE,
    "spread": BAD_POSITIVE,
    "flag": st.one_of(st.integers(), st.floats(), OBJECTS),
    "name": ANYTHING,
    "widths": BAD_WIDTHS,
    "module": ANYTHING,
    "pair": ANYTHING,
    "rows": bad_rows(),
    "rows with holes": bad_rows((math.inf, -math.inf)),
    "rows of a pair": bad_rows((math.inf, -math.inf)),
    "rows of a baseline": bad_rows(),
    "binary rows": bad_rows(),
    "rows to fit": bad_rows(),
    "rows of a baseline with holes": bad_rows((math.inf, -math.inf)),
    "binary rows with holes": bad_rows((math.inf, -math.inf)),
    "rows to fit with holes": bad_rows((math.inf, -math.inf)),
    "evidence": ANYTHING,
    "models": ANYTHING,
    "axes": ANYTHING.filter(lambda value: value is not None),
    "frame": ANYTHING,
    "loss": NUMBERS | OBJECTS.filter(lambda value: value is not None),
    "tile": st.one_of(
        NUMBERS,
        OBJECTS.filter(lambda value: value is not None and not isinstance(value, list)),
        st.tuples(BAD_COUNT, st.integers(1, 9)),
        st.tuples(st.integers(1, 9), BAD_COUNT),
        st.lists(st.integers(1, 9), min_size=3, max_size=4).map(tuple),
    ),
}
DRAWN_ARGUMENTS = [
    (name, argument)
    for name, case in CASES.items()
    for argument, kind in case.kinds.items()
    if kind in DRAWN and argument not in {taken for taken, _ in case.taken}
]


@settings(
    max_examples=1000,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.data())
def test_whatever_is_malformed_is_refused(data):
    name, argument = data.draw(st.sampled_from(DRAWN_ARGUMENTS))
    value = data.draw(DRAWN[CASES[name].kinds[argument]])
    why = why_not_a_refusal(CASES[name], argument, value)
    assert why is None, f"{name}({argument}={value!r}): {why}"


@settings(
    max_examples=200, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
@given(
    st.sets(st.tuples(st.integers(0, ROWS - 1), st.integers(0, COLUMNS - 1)), min_size=1, max_size=20),
    st.sampled_from([math.inf, -math.inf]),
    st.sampled_from([pv.elbo, pv.log_weights, evidence.importance, evidence.exact]),
)
def test_count_and_first_position_are_the_right_ones(places, value, function):
    x = world()["x"].clone()
    for place in places:
        x[place] = value
    row, column = min(places)
    with pytest.raises(Refused) as raised:
        function(world()["vae"], x)
    assert f"got {len(places)} that are infinite, first {value} at row {row}, column {column}." in str(
        raised.value
    )


# ---------------------------------------------------------------------------------------------------------
# What is taken on purpose


def test_numbers_of_numpy_are_taken_like_pythons():
    vae, x = world()["vae"], world()["x"]
    plain = pv.elbo(vae, x, num_samples=5, seed=3).estimate
    assert np.array_equal(pv.elbo(vae, x, num_samples=np.int64(5), seed=np.uint8(3)).estimate, plain)
    assert likelihoods.Gaussian(pv.MLP(2, (), 3), scale=np.float32(0.5)).scale == 0.5
    assert (
        evidence.importance(vae, x, num_samples=5, pareto_smoothed=np.bool_(False), check=False).kind[0]
        == "lower bound"
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.clone().requires_grad_(),
        lambda x: x.bool(),
        lambda x: x.to(torch.uint8),
        lambda x: x.numpy().astype(np.uint16),
        lambda x: x.numpy().astype(np.float64),
        lambda x: x.numpy()[::-1][::-1],
        lambda x: pd.DataFrame(x.numpy()),
        lambda x: {"x": x},
    ],
)
def test_rows_of_these_kinds_are_the_same_rows(change):
    vae, x = world()["vae"], world()["x"]
    assert np.array_equal(
        pv.elbo(vae, change(x), num_samples=5).estimate, pv.elbo(vae, x, num_samples=5).estimate
    )


# ---------------------------------------------------------------------------------------------------------
# Commands, and python -O


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--epochs", "-3"], "--epochs"),
        (["demo", "--epochs", "0"], "--epochs"),
        (["demo", "--epochs", "many"], "--epochs"),
        (["demo", "--epochs", "1.5"], "--epochs"),
        (["demo", "--epochs"], "--epochs"),
        (["demo", "--seed", "-1"], "--seed"),
        (["demo", "--seed", "nan"], "--seed"),
        (["demo", "--out", __file__], "expected a folder"),
        (["demo", "--out", "/proc/no/such"], "expected a folder"),
        (["demo", "extra"], "extra"),
        (["demo", "--such"], "--such"),
        (["train"], "train"),
    ],
)
def test_commands_refuse_in_words(arguments, message):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)


def test_refusals_do_not_need_pyros_validation():
    """The same refusals, word for word, where ``python -O`` switches off the validation of torch and Pyro."""
    vae, x = pv.VAE.mlp(3, 1), torch.ones(4, 3)
    bad = x.clone()
    bad[2, 1] = math.inf
    calls = [
        lambda: pv.fit(vae, bad),
        lambda: pv.fit(vae, x, epochs=0),
        lambda: pv.elbo(vae, bad),
        lambda: pv.elbo(vae, x[:, :2]),
        lambda: pv.elbo(vae, x / 2),
        lambda: evidence.refined(vae, x, family="no such"),
        lambda: likelihoods.Gaussian(pv.MLP(2, (), 3), scale=-1.0),
        lambda: baselines.PPCA(1).fit(bad),
        lambda: vae.sample(-1),
        lambda: vae.reconstruct(bad),
    ]

    def refusals():
        for call in calls:
            with pytest.raises((TypeError, ValueError)) as caught:
                call()
            yield str(caught.value)

    plain = list(refusals())
    with pyro.validation_enabled(False):
        assert list(refusals()) == plain
    assert all(PARTS.fullmatch(line) for line in plain)


# ---------------------------------------------------------------------------------------------------------
# Rows of another kind, shape or precision: one sentence names what came, and the right fix


class Table:
    """Something like pyarrow's table, dask's frame or an h5py data set: what has one method that makes rows."""

    def __init__(self, method, rows):
        setattr(self, method, lambda: rows)


class ArrayLike:
    def __init__(self, rows):
        self.rows = rows

    def __array__(self, dtype=None, copy=None):
        return self.rows


class Samples(torch.utils.data.Dataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index]


def object_array(thing):
    array = np.empty((), dtype=object)
    array[()] = thing
    return array


#: What is no rows, made of good rows, x, shape (24, 6): its name in the message, and the fix. Where the fix is an
#: expression of x, it gives the good rows.
OTHER_KINDS = {
    "numpy.asarray of scipy sparse": (
        lambda x: np.asarray(scipy.sparse.csc_matrix(x.numpy())),
        "an array around a csc_matrix",
        "x.item().toarray()",
    ),
    "an array around a tensor-like": (
        lambda x: object_array(ArrayLike(x.numpy())),
        "an array around a ArrayLike",
        "numpy.asarray(x.item())",
    ),
    "torch sparse": (lambda x: x.to_sparse(), "a torch.sparse_coo one", "x.to_dense()"),
    "a lazy frame": (lambda x: Table("compute", x.numpy()), "a Table", "x.compute()"),
    "an array of another library": (lambda x: ArrayLike(x.numpy()), "a ArrayLike", "numpy.asarray(x)"),
    "nested lists": (lambda x: x.tolist(), "a list", "numpy.asarray(x)"),
    "nested tuples": (lambda x: tuple(map(tuple, x.tolist())), "a tuple", "numpy.asarray(x)"),
    "an array of arrays": (
        lambda x: np.array([None, *x.numpy()], dtype=object)[1:],
        "whose entries are ndarrays",
        "numpy.stack(x)",
    ),
    "numbers as strings": (lambda x: x.numpy().astype(str), "dtype <U32", "x.astype(float)"),
    "an object array": (lambda x: x.numpy().astype(object), "dtype object", "x.astype(float)"),
    "a TensorDataset": (lambda x: torch.utils.data.TensorDataset(x), "a TensorDataset", "x.tensors[0]"),
    "a Dataset": (Samples, "a Samples", "torch.stack([x[i] for i in range(len(x))])"),
    "a path": (lambda x: "rows.csv", "a str", None),
    "a Path": (lambda x: Path("rows.npy"), "a PosixPath", None),
    "a file": (lambda x: io.StringIO("1,2"), "a StringIO", None),
    "a model": (lambda x: torch.nn.Linear(2, 2), "a Linear", None),
    "nothing": (lambda x: None, "a NoneType", None),
    "a structured array": (
        lambda x: np.rec.fromarrays(x.numpy().T.astype(float)),
        "dtype (numpy.record",
        "numpy.lib.recfunctions.structured_to_unstructured(x)",
    ),
}
#: Rows in chunks.
CHUNKS = {
    "a DataLoader": lambda x: torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=8),
    "a list of tensors": lambda x: list(x.split(8)),
    "a tuple of arrays": lambda x: tuple(np.split(x.numpy(), 3)),
    "a list of frames": lambda x: [pd.DataFrame(part.numpy()) for part in x.split(7)],
    "a list of dicts": lambda x: [{"x": part} for part in x.split(8)],
}


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda x: pv.log_evidence(world()["vae"], x, check=False), id="log_evidence"),
        pytest.param(lambda x: pv.fit(world()["vae"], x), id="fit"),
        pytest.param(lambda x: baselines.IndependentBernoulli().fit(x), id="baseline"),
    ],
)
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_rows_of_another_kind_are_named_with_the_fix_that_works(kind, call):
    import numpy.lib.recfunctions

    make, came, fix = OTHER_KINDS[kind]
    good = world()["x"]
    x = make(good)
    with pytest.raises((TypeError, ValueError)) as refusal:
        call(x)
    parts = PARTS.fullmatch(str(refusal.value))
    assert parts
    assert parts["argument"] == "x"
    assert came in parts["came"]
    if fix is not None:
        assert fix in parts["mend"]
        rows = as_tensor(eval(fix, {"x": x, "numpy": numpy, "torch": torch}), dtype=torch.float32)
        assert torch.equal(rows, good)


@pytest.mark.parametrize("kind", CHUNKS)
def test_chunks_have_the_numbers_of_the_whole(kind):
    vae, x = world()["vae"], world()["x"]
    whole, parts = (pv.log_evidence(vae, rows, num_samples=20, check=False) for rows in (x, CHUNKS[kind](x)))
    np.testing.assert_array_equal(parts.estimate, whole.estimate)
    assert parts.fingerprint == whole.fingerprint
    baseline = baselines.IndependentBernoulli().fit(CHUNKS[kind](x))
    np.testing.assert_array_equal(
        baseline.log_evidence(CHUNKS[kind](x)).estimate, baseline.log_evidence(x).estimate
    )


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        (
            lambda x: (part for part in x.split(8)),
            "x: expected chunks that can be iterated again, got a gen",
        ),
        (lambda x: [x, x[:, :3]], r"x\[1\]: expected a Tensor with rows of shape \(\d+,\)"),
        (lambda x: [x, x.numpy()], r"x\[1\]: expected a Tensor .*, got a ndarray"),
        (lambda x: [{"x": x}, x], r"x\[1\]: expected a dict with \['x'\], as x\[0\], got a Tensor"),
        (lambda x: [x, torch.tensor(1.0)], r"x\[1\]: expected an array of rows, got a Tensor"),
        (lambda x: range(3), "x: expected .* got a range"),
        (
            lambda x: [
                pd.DataFrame({"a": x[:, 0], "b": x[:, 1]}),
                pd.DataFrame({"a": x[:, 0], "c": x[:, 1]}),
            ],
            r"x\[1\]: expected a frame with the columns \['a', 'b'\], as x\[0\], got one with \['a', 'c'\]",
        ),
        (lambda x: [(x, x)], r"x\[0\]: expected an array of rows, or a dict with them, got a tuple of 2"),
    ],
)
def test_chunks_that_do_not_join_are_named(chunks, message):
    with pytest.raises((TypeError, ValueError), match=message):
        pv.elbo(world()["vae"], chunks(world()["x"]))


class Each(torch.utils.data.IterableDataset):
    """The rows of a tensor, one by one."""

    def __init__(self, x):
        self.x = x

    def __iter__(self):
        return iter(self.x)


#: Rows one by one.
ONE_BY_ONE = {
    "tensors": list,
    "arrays": lambda x: list(x.numpy()),
    "one array": lambda x: [x[0].numpy()],
    "series": lambda x: [row for _, row in pd.DataFrame(x.numpy()).iterrows()],
    "a dataset": Each,
    "a list of a dataset": lambda x: list(torch.utils.data.TensorDataset(x)),
    "a DataLoader without batches": lambda x: torch.utils.data.DataLoader(Each(x), batch_size=None),
    "dicts": lambda x: [{"x": row} for row in x],
}


@pytest.mark.parametrize("kind", ONE_BY_ONE)
@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda x: baselines.IndependentBernoulli().fit(x), id="baseline"),
        pytest.param(lambda x: pv.fit(pv.VAE.mlp(1, 1, "bernoulli", hidden_dims=(4,)), x), id="fit"),
        pytest.param(lambda x: pv.log_evidence(world()["vae"], x), id="log_evidence"),
    ],
)
def test_rows_one_by_one_are_no_column(kind, call):
    """Before, n rows of d numbers were read as n·d rows of one number."""
    good = world()["x"]
    with pytest.raises(ValueError, match="one row or one column") as refusal:
        call(ONE_BY_ONE[kind](good))
    if kind in ("tensors", "arrays", "series", "a dataset"):
        fix = re.search(r"Pass (\S+\(list\(x\)\)) if each chunk is a row", str(refusal.value))[1]
        names = {"x": ONE_BY_ONE[kind](good), "torch": torch, "numpy": np, "pandas": pd, "list": list}
        np.testing.assert_array_equal(np.asarray(eval(fix, names)), good)


def test_batches_of_a_data_loader_may_be_of_one_column():
    column = world()["x"][:, 0]
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(column), batch_size=4)
    found, expected = (baselines.IndependentBernoulli().fit(x) for x in (batches, column[:, None]))
    np.testing.assert_array_equal(
        found.log_evidence(batches).estimate, expected.log_evidence(column[:, None]).estimate
    )


@pytest.mark.parametrize(
    "batches",
    [
        lambda x: torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(x, torch.arange(len(x))), batch_size=8
        ),
        lambda x: [(x, torch.arange(len(x)))],
        lambda x: [x, [x, x]],
    ],
)
def test_batches_of_rows_and_labels_are_named(batches):
    with pytest.raises(
        TypeError, match=r"x\[\d\]: expected an array of rows.*of 2, such as \(rows, labels\).*Leave the"
    ):
        pv.fit(world()["vae"], batches(world()["x"]))


def test_frames_of_sparse_columns_are_rows():
    vae, x = world()["vae"], world()["x"]
    sparse = pd.DataFrame(x.numpy()).astype(pd.SparseDtype("float32", 0))
    assert np.allclose(pv.elbo(vae, sparse, num_samples=5).estimate, pv.elbo(vae, x, num_samples=5).estimate)


def linear():
    return pv.VAE(
        priors.StandardNormal(1),
        likelihoods.Gaussian(torch.nn.Linear(1, COLUMNS)),
        encoders.DiagonalNormal(torch.nn.Linear(COLUMNS, 2)),
    )


#: Rows of another shape than (24, 6): the shape that the message names, and the fix for an MLP.
SHAPES = {
    "(n, 1, 6)": (lambda x: x[:, None], r"\(\d+, 1, 6\)|\(1, 6\)", "x.reshape(len(x), -1)"),
    "(n, 6, 1)": (lambda x: x[..., None], r"\(\d+, 6, 1\)|\(6, 1\)", "x.reshape(len(x), -1)"),
    "(n, 2, 3)": (lambda x: x.view(-1, 2, 3), r"\(\d+, 2, 3\)|\(2, 3\)", "x.reshape(len(x), -1)"),
    "(n, 1, 2, 3)": (lambda x: x.view(-1, 1, 2, 3), r"\(\d+, 1, 2, 3\)|\(1, 2, 3\)", "x.reshape(len(x), -1)"),
    "(1, n, 6)": (lambda x: x[None], r"\(1, 24, 6\)|\(24, 6\)", "x[0]"),
    "transposed": (lambda x: x.T, r"\(\d, 24\)|\(24,\)", "x.T"),
    "one row": (lambda x: x[0], r"\(6,\)|\(\)", "x[None]"),
    "one column": (lambda x: x[:, 0], r"\(24,\)|\(\d,\)|\(\)", "rows of that width"),
    "too wide": (lambda x: torch.cat([x, x], 1), r"\(24, 12\)|\(12,\)|\(\d, 12\)", "rows of that width"),
}


@pytest.mark.parametrize("pair", ["mlp", "linear", "functions"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("call", [pv.elbo, pv.fit], ids=lambda f: f.__name__)
def test_rows_of_another_shape_are_named_as_such(shape, pair, call):
    change, came, fix = SHAPES[shape]
    make = {"mlp": a("gaussian"), "linear": linear, "functions": lambda: pv.LatentVariableModel(model, guide)}
    with pytest.raises(ValueError) as refusal:
        call(make[pair](), change(world()["real"]))
    parts = PARTS.fullmatch(str(refusal.value))
    assert parts
    assert parts["argument"] == "x"
    assert re.search(came, parts["came"])
    if pair == "mlp":
        assert fix in parts["mend"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("call", [pv.log_evidence, pv.elbo, pv.fit, pv.diagnose], ids=lambda f: f.__name__)
def test_sixteen_bits_are_refused(dtype, call):
    vae, x = pv.VAE.mlp(COLUMNS, 2, hidden_dims=(4,)), world()["x"]
    with pytest.raises(
        TypeError, match=rf"x: expected a float32 or float64 tensor, got a {dtype} one.*x\.float\(\)"
    ):
        call(vae, x.to(dtype))
    with pytest.raises(TypeError, match=rf"pair: expected parameters in float32 or float64, .*{dtype}"):
        call(vae.to(dtype), x.to(dtype))
    for made in (lambda: vae.sample(3), lambda: vae.reconstruct(x)):
        with pytest.raises(TypeError, match="pair: expected parameters in float32"):
            made()
    with pytest.raises(TypeError, match="x: expected a float32 or float64 tensor"):
        baselines.PPCA(1).fit(x.to(dtype))
    assert np.isfinite(pv.elbo(vae.float(), x.numpy().astype(np.float16)).mean)  # arrays are cast


def test_no_gpu_and_no_numbers_are_said():
    if not torch.cuda.is_available():
        for move in (lambda vae: vae.to("cuda"), lambda vae: vae.cuda()):
            with pytest.raises(ValueError, match="device: expected one that this machine"):
                move(world()["vae"])
    with torch.device("meta"):
        vae = pv.VAE.mlp(COLUMNS, 2, hidden_dims=(4,))
    for call in (pv.elbo, pv.fit):
        with pytest.raises(TypeError, match="pair: expected parameters with numbers in them"):
            call(vae, world()["x"])


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("call", [pv.log_evidence, pv.fit, lambda vae, x: vae.reconstruct(x)])
def test_columns_of_very_different_size_are_named_before_anything_else(call, standardize):
    """Where the encoder overflows; a pair that standardises takes them."""
    x = world()["real"] * torch.logspace(0, 8, COLUMNS)
    vae = pv.VAE.mlp(COLUMNS, 1, "gaussian", hidden_dims=(4,), standardize=standardize, scale="per_dimension")
    if standardize:
        pv.fit(vae, x, epochs=1, lr=1e-9)
        call(vae, x)
        return
    with pytest.raises(
        ValueError, match=r"\. Columns have very different scales, of size .*standardize=True"
    ):
        call(vae, x)


@pytest.mark.filterwarnings("ignore:Encountered NaN")
@pytest.mark.parametrize("standardize", [False, True])
def test_a_loss_of_counts_that_overflows_names_standardize_where_it_would_help(standardize):
    x = torch.poisson(torch.tensor([0.1, 5.0, 300.0, 300.0]).expand(100, 4))
    vae = pv.VAE.mlp(4, 1, "negative_binomial", hidden_dims=(4,), standardize=standardize)
    with pytest.raises((FloatingPointError, ValueError), match=r"[Ll]ower (the learning rate|lr)") as error:
        pv.fit(vae, x, epochs=50, lr=1e3)
    assert ("standardize=True" in str(error.value)) != standardize


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_an_encoder_of_another_dtype_is_named(dtype):
    vae = pv.VAE.mlp(3, 1, "gaussian", hidden_dims=(4,))
    vae.encoder.to(dtype)
    kind = str(dtype).removeprefix("torch.")
    for call in (
        lambda: pv.log_evidence(vae, torch.randn(9, 3), check=False),
        lambda: pv.fit(vae, torch.randn(9, 3), epochs=1),
    ):
        with pytest.raises(
            ValueError, match=rf"in dtypes that the guide computes with.*Parameters are in.*\b{kind}\b"
        ):
            call()


def test_labels_that_are_no_index_are_named():
    table = torch.tensor([0.0, 1.0])

    def model(x, label):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(table[label], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, label):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    pair = pv.LatentVariableModel(model, guide)
    for label in (np.zeros(9, dtype=np.int8), pd.Series(np.zeros(9, dtype=np.int8)), np.zeros(9)):
        with pytest.raises(ValueError, match=r"label in (int8|float32)\. Cast .* labels by \.long\(\)"):
            pv.log_evidence(pair, {"x": torch.randn(9), "label": label}, check=False)


@pytest.mark.parametrize("device", ["gpu", "cuda:first"])
def test_devices_that_do_not_exist_are_refused(device):
    with pytest.raises(ValueError, match=rf"device: expected one that this machine .* got '?{device}"):
        pv.VAE.mlp(3, 1, hidden_dims=(4,)).to(device)


def test_moving_to_a_dtype_is_as_in_torch():
    vae = pv.VAE.mlp(3, 1, hidden_dims=(4,))
    assert vae.to("cpu", torch.float64) is vae
    assert vae.dtype == torch.float64
    assert vae.to(torch.ones(1)).dtype == torch.float32
    assert vae.to(dtype=torch.float64).dtype == torch.float64


@pytest.mark.parametrize("x", [memoryview(np.ones((9, 3))), memoryview(b"123"), bytearray(9)])
def test_buffers_are_no_rows(x):
    vae = pv.VAE.mlp(3, 1, "gaussian", hidden_dims=(4,))
    for call in (lambda: pv.fit(vae, x, epochs=1), lambda: pv.log_evidence(vae, x, check=False)):
        with pytest.raises(
            TypeError, match=r"x: expected a tensor, a numpy array or a DataFrame, got a (memoryview|bytea)"
        ):
            call()


def test_a_series_is_made_a_frame_of_one_column():
    x, vae = pd.Series(np.linspace(0, 1, 9)), pv.VAE.mlp(1, 1, "gaussian", hidden_dims=(4,))
    with pytest.raises(ValueError, match=r"Pass x\[:, None\], or x\.to_frame\(\) of a series"):
        pv.log_evidence(vae, x, num_samples=5, check=False)
    assert len(pv.log_evidence(vae, x.to_frame(), num_samples=5, check=False)) == 9


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_advice_for_images_works_for_arrays_and_tensors(kind):
    images = kind(np.random.default_rng(0).random((50, 4, 4)).astype(np.float32))
    vae = pv.VAE.mlp(16, 2, likelihood="gaussian", hidden_dims=(4,))
    with pytest.raises(
        ValueError, match=re.escape("each of shape (16,), got rows of shape (4, 4).")
    ) as error:
        pv.fit(vae, images, epochs=1)
    advice = str(error.value).rsplit("Pass ", 1)[1].removesuffix(".")
    assert eval(advice, {"x": images}).shape == (50, 16)


def test_a_frame_with_labels_and_a_dict_of_columns_name_what_takes_them():
    frame = pd.DataFrame({"n": [0.5, 1.5, 2.0], "s": ["u", "v", "u"]})
    vae = pv.VAE.mlp(2, 1, likelihood="gaussian")
    for run in (
        lambda: pv.fit(vae, frame, epochs=1),
        lambda: baselines.FullGaussian().fit(frame),
        lambda: likelihoods.suggest(frame),
    ):
        with pytest.raises(TypeError, match=r"first 's'.*VAE\.for_table"):
            run()
    with pytest.raises(ValueError, match=re.escape("of a dict of columns, pandas.DataFrame(x)")):
        pv.log_evidence(vae, frame.to_dict("list"))


def test_an_option_that_a_family_lacks_is_shown_where_it_is_passed():
    x = torch.arange(30.0).reshape(15, 2) % 3
    with pytest.raises(TypeError, match=re.escape('Pass ("ordinal", {"num_levels": …}).')):
        pv.swap(x, 1, ["ordinal"])
    with pytest.raises(TypeError, match=re.escape('Pass ("binomial", {"total_count": …}).')):
        pv.VAE.for_table(pd.DataFrame({"a": x[:, 0].numpy()}), 1, families={"a": "binomial"})
