"""A few of the sequences that ``python -m tests.fuzz models`` runs by the thousand, and faults that they find."""

import pytest

import rnncore
from rnncore.model.base import Parameterised
from rnncore.network.network import Network
from tests.fuzz import models

SEQUENCES, STEPS = 20, 8
USABLE = [b.name for b in rnncore.backends() if b.usable]


def test_twenty_short_sequences():
    done = models.run([b for b in ("numpy", "numba", "torch", "mlx", "strict") if b in USABLE], SEQUENCES, STEPS)
    assert done["steps"] > SEQUENCES and done["new"] >= SEQUENCES


def copies_that_share(monkeypatch):
    right = Parameterised.to
    monkeypatch.setattr(
        Parameterised, "to", lambda self, *a, **o: right(self, *a, **o) if a or o else self.from_network(self.network)
    )


def loads_in_the_wrong_order(monkeypatch):
    right = Parameterised._host_state

    def wrong(self, state_dict):
        host = right(self, state_dict)
        return host | ({"bias_ih_l0": host["bias_hh_l0"]} if "bias_ih_l0" in host else {})

    monkeypatch.setattr(Parameterised, "_host_state", wrong)


def remembers_old_parameters(monkeypatch):
    right = Network.weights

    def wrong(self, params=None):
        if params is not None:
            return right(self, params)
        if "weights" not in self.plans:
            self.plans["weights"] = right(self)
        return self.plans["weights"]

    monkeypatch.setattr(Network, "weights", wrong)


@pytest.mark.parametrize("plant", [copies_that_share, loads_in_the_wrong_order, remembers_old_parameters])
def test_a_planted_fault_is_found(plant, monkeypatch):
    plant(monkeypatch)
    with pytest.raises(AssertionError) as found:
        models.run(["numpy", "torch"], 60, shrink=False)
    assert "Models()" in "".join(found.value.__notes__)  # the sequence that led there, as a program
