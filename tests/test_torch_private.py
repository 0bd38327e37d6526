"""Undocumented names of torch are in one file; where one has moved, everything runs without a trace and says so."""

import ast
import re
from pathlib import Path

import pytest
import torch

import pyrovae as pv
from pyrovae import torch_private
from pyrovae.torch_private import NAMES

PACKAGE = Path(pv.__file__).parent
#: Names for keyed noise, for precision="medium", for updates inside a graph, and for counters in hooks of all modules.
NOT_FOR_STEPS = {"TorchDispatchMode", "bf16_products", *(name for name in NAMES if name.endswith("_hooks"))}


@pytest.fixture(params=NAMES)
def hidden(request, monkeypatch):
    from pyrovae.pair import drawing

    drawing._mode.cache_clear()
    monkeypatch.setitem(NAMES, request.param, f"torch.nowhere.{request.param}")
    yield request.param
    drawing._mode.cache_clear()


def test_every_name_is_there():
    for name in NAMES:
        assert torch_private.private(name) is not None


def test_a_hidden_name_is_refused_by_its_name_where_a_trace_is_asked_for(hidden):
    vae, x = pv.VAE.mlp(4, 1, hidden_dims=(3,)), torch.ones(8, 4)
    message = re.escape(f"has no torch.nowhere.{hidden}")
    if hidden not in NOT_FOR_STEPS:
        with pytest.raises(ValueError, match=message):
            pv.fit(vae, x, epochs=2, compile=True)
        with pytest.raises(ValueError, match=message):
            pv.log_weights(vae, x, 5, compile=True)


def test_a_hidden_name_is_done_without(hidden):
    vae, x = pv.VAE.mlp(4, 1, hidden_dims=(3,)), torch.ones(8, 4)
    pv.fit(vae, x, epochs=1)
    assert pv.log_evidence(vae, x, num_samples=20, check=False).noise == (
        "tile" if hidden == "TorchDispatchMode" else "index"
    )


def test_no_other_file_uses_undocumented_names_of_torch():
    private = re.compile(r"torch(?!\.distributions)(\.\w+)*\._(?!_)|torch\.fx\.(experimental|passes)")
    for path in PACKAGE.rglob("*.py"):
        if path.name == "torch_private.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.Attribute):
                names.append(ast.unparse(node))
            for name in names:
                assert not (name.startswith("torch") and private.match(name)), f"{path.name}: {name}"
