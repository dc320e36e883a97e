"""The example of docs/diagnostics.md in a reduced form: the verdicts, that the remedies' numbers are used, and the gain."""

import importlib.util
import sys

import numpy as np
import pytest

from tests.tools.places import ROOT
from tests.tools.rounding import EPS_OF, agree

pytestmark = pytest.mark.slow

pytest.importorskip("sklearn")
pytest.importorskip("threadpoolctl")
pytest.importorskip("matplotlib")

PATH = ROOT / "examples" / "why_it_does_not_learn.py"
# Measured with 6 epochs: 0.25 to 0.84, 0.18 to 0.70, 0.33 to 0.73. A gain of 0.2 leaves room for another
# library's rounding.
EPOCHS, GAIN = 6, 0.2
NAMES = ["vanishing", "exploding", "saturated"]
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


@pytest.mark.parametrize("name", NAMES)
def test_the_verdict_is_right_and_its_remedies_make_the_network_learn(told, name):
    story = told[0][name]
    assert story.before.verdict.label == name
    assert story.after.verdict.label == "healthy"
    assert story.repaired_accuracy > story.accuracy + GAIN
    assert story.repaired_accuracy > 4 * CHANCE


@pytest.mark.parametrize("name", NAMES)
def test_the_gain_is_the_one_that_the_report_recommends(told, name):
    story = told[0][name]
    (remedy,) = (r for r in story.before.verdict.remedies if r.parameter == "weight_hh gain")
    assert remedy.value is not None
    w = story.repaired.init["weight_hh"]((8, 8), np.random.default_rng(0))
    agree(w @ w.T, remedy.value**2 * np.eye(8), 2 * 8)  # a QR decomposition of 8 columns, and sums of 8 products
    # The network's matrix is rounded to float32.
    assert story.after.initial.gain[0][0] == pytest.approx(remedy.value, rel=8 * EPS_OF["float32"])


def test_the_input_is_scaled_by_the_recommended_number_and_the_gain_is_for_what_is_left_of_it(told):
    story = told[0]["saturated"]
    found = {r.parameter: r.value for r in story.before.verdict.remedies}
    assert [r.parameter for r in story.before.verdict.remedies] == ["input scale", "weight_hh gain"]
    assert story.repaired.input_scale == story.setup.input_scale * found["input scale"]
    before, after = (report.initial for report in (story.before, story.after))
    assert after.input_variance[0][0] == pytest.approx(0.15, rel=0.05)  # the biases and W_ih are others: 3 % here
    assert found["weight_hh gain"] == pytest.approx(after.critical[0][0].g, rel=0.01)
    assert found["weight_hh gain"] < before.critical[0][0].g / 2
    assert story.after.saturation.saturated[0][0] < 0.05 < 0.3 < story.before.saturation.saturated[0][0]


def test_every_seed_has_its_own_report_and_its_own_remedies(example):
    story = example.tell(example.SETUPS[2], example.split_digits(200), 1, seeds=2)
    assert len(story.accuracies) == len(story.repaired_accuracies) == 2
    assert story.accuracy == story.accuracies[0] and story.repaired_accuracy == story.repaired_accuracies[0]
    alone = example.tell(example.SETUPS[2], example.split_digits(200), 1)
    assert alone.accuracies == story.accuracies[:1] and alone.repaired_accuracies == story.repaired_accuracies[:1]


def test_clipping_is_used_where_it_is_recommended(told):
    for story in told[0].values():
        recommended = any(r.parameter == "clip_grad_norm" for r in story.before.verdict.remedies)
        assert story.repaired.clip_at_quantile == recommended


def test_a_remedy_that_the_example_cannot_apply_is_refused(example):
    remedy = example.Remedy("look at the data", "nothing", "data")
    with pytest.raises(ValueError, match="no way to apply look at the data"):
        example.apply(example.SETUPS[0], remedy)


def test_the_pictures_are_written(told):
    assert sorted(p.name for p in told[1].iterdir()) == [f"why-{name}.png" for name in sorted(NAMES)]
