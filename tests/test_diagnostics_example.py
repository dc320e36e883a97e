"""The example of docs/diagnostics.md in a reduced form: the verdicts, that the remedies' numbers are used, and the gain."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("threadpoolctl")
pytest.importorskip("matplotlib")

PATH = Path(__file__).parents[1] / "examples" / "why_it_does_not_learn.py"
# Measured with 6 epochs: 0.25 to 0.81, and 0.18 to 0.67. A gain of 0.2 leaves room for another library's rounding.
EPOCHS, GAIN = 6, 0.2
CHANCE = 0.1


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("why_it_does_not_learn", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def told(example, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    return {s.setup.name: s for s in example.main(["--epochs", str(EPOCHS), "--images", str(folder)])}, folder


@pytest.mark.parametrize("name", ["vanishing", "exploding"])
def test_the_verdict_is_right_and_its_remedies_make_the_network_learn(told, name):
    story = told[0][name]
    assert story.before.verdict.label == name
    assert story.after.verdict.label == "healthy"
    assert story.repaired_accuracy > story.accuracy + GAIN
    assert story.repaired_accuracy > 4 * CHANCE


@pytest.mark.parametrize("name", ["vanishing", "exploding"])
def test_the_gain_is_the_one_that_the_report_recommends(told, name):
    story = told[0][name]
    (remedy,) = (r for r in story.before.verdict.remedies if r.parameter == "weight_hh gain")
    assert remedy.value is not None
    w = story.repaired.init["weight_hh"]((8, 8), np.random.default_rng(0))
    np.testing.assert_allclose(w @ w.T, remedy.value**2 * np.eye(8), atol=1e-12)
    assert story.after.initial.gain[0][0] == pytest.approx(remedy.value, rel=1e-6)


def test_clipping_is_used_where_it_is_recommended(told):
    for story in told[0].values():
        recommended = any(r.parameter == "clip_grad_norm" for r in story.before.verdict.remedies)
        assert story.repaired.clip_at_quantile == recommended


def test_a_remedy_that_the_example_cannot_apply_is_refused(example):
    remedy = example.Remedy("look at the data", "nothing", "data")
    with pytest.raises(ValueError, match="no way to apply look at the data"):
        example.apply(example.SETUPS[0], remedy)


def test_the_pictures_are_written(told):
    assert sorted(p.name for p in told[1].iterdir()) == ["why-exploding.png", "why-vanishing.png"]
