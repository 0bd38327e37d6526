"""Files of an earlier version load; its checkpoints are refused by name.

tests/fixtures holds what pyrovae wrote at commit d34650b: three pairs, a baseline, and the folders of a fit and of an
evaluation. ``expected.json`` holds numbers that it computed from them.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyrovae as pv

FILES = Path(__file__).parent / "fixtures"
EXPECTED = json.loads((FILES / "expected.json").read_text())


@pytest.mark.parametrize(("name", "rows"), [("vae", 3), ("standardized", 2)])
def test_a_vae_loads(name, rows):
    vae = pv.load(FILES / f"{name}.safetensors")
    np.testing.assert_allclose(vae.sample(rows, seed=1), EXPECTED[name], rtol=1e-5)
    assert len(vae.seen) in (40, 60)
    assert len(vae.fitted.history["records"]) in (1, 2)


def test_a_vae_knows_its_columns():
    vae = pv.load(FILES / "vae.safetensors")
    assert vae.names == {"x": tuple("abcde")}
    assert np.isfinite(pv.log_evidence(vae, torch.ones(2, 5), num_samples=10, check=False).estimate).all()


def test_a_pair_of_functions_loads_into_the_same_code():
    def model(x):
        scale = pyro.param("scale", torch.tensor(1.5), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    def guide(x):
        w = pyro.param("w", torch.tensor(0.4))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(w * x, 0.8))

    pair = pv.load(FILES / "pair.safetensors", into=pv.LatentVariableModel(model, guide))
    pv.log_weights(pair, torch.zeros(2), num_samples=1)
    assert {name: float(p.detach()) for name, p in pair.named_parameters()} == EXPECTED["pair"]


def test_a_baseline_loads():
    ppca = pv.load(FILES / "ppca.safetensors")
    np.testing.assert_allclose(ppca.log_evidence(torch.ones(1, 4)).estimate, EXPECTED["ppca"], rtol=1e-12)


def resume_fit(folder):
    pv.fit(pv.VAE.mlp(5, 2, hidden_dims=(4,)), torch.ones(60, 5), epochs=2, batch_size=20, checkpoint=folder)


def resume_evidence(folder):
    vae = pv.load(FILES / "vae.safetensors")
    pv.log_evidence(vae, torch.ones(4, 5), num_samples=10, checkpoint=folder, check=False)


@pytest.mark.parametrize(("folder", "resume"), [("fit", resume_fit), ("evidence", resume_evidence)])
def test_a_checkpoint_is_refused_by_its_format(folder, resume, tmp_path):
    """The noise has changed since, so that a resumed run could not reach the bits of an uninterrupted one."""
    kept = shutil.copytree(FILES / folder, tmp_path / folder)
    before = {path.name: path.read_bytes() for path in kept.glob("*.safetensors")}
    with pytest.raises(ValueError, match=r"checkpoint: expected a folder of format \d+.* of format 2"):
        resume(kept)
    assert before == {path.name: path.read_bytes() for path in kept.glob("*.safetensors")}
