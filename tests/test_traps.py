"""log P(x) of the models in benchmarks/trap_models.py, against importance sampling close to the posterior."""

import sys
from pathlib import Path

import pytest

import pyrovae as pv

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
from trap_models import HELD_BACK, SETTINGS, verify

#: The last setting of every kind.
ONE_EACH = {setting.kind: setting for setting in SETTINGS if setting.name != "PPCA, 50-D, 1.05 × sd"}


@pytest.mark.parametrize("kind", ONE_EACH)
def test_known_log_evidence_agrees_with_importance_sampling(kind):
    # The settings alone, not seeds of a test, decide what is drawn; 5 standard errors fail once in 10⁶.
    error, ratio = verify(ONE_EACH[kind], rows=2, count=1000)
    assert ratio < 5
    assert error < 0.05


def test_a_setting_gives_the_same_rows_each_time():
    setting = SETTINGS[0]
    pair, x, truth = setting.build(0, 3)
    assert isinstance(pair, pv.LatentVariableModel)
    assert (setting.build(0, 3)[1] == x).all()
    assert not (setting.build(1, 3)[1] == x).any()
    assert truth.shape == (3,)
    assert truth.dtype == "float64"


def test_settings_have_names_of_their_own_and_kinds_have_three_settings():
    assert len({setting.name for setting in SETTINGS}) == len(SETTINGS)
    kinds = [setting.kind for setting in SETTINGS]
    assert min(map(kinds.count, set(kinds))) >= 3
    assert set(kinds) >= HELD_BACK
