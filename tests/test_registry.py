"""Named algorithms, which other packages can add to."""

import pytest
import torch

import edgeq
from edgeq.errors import SpecError
from edgeq.observers import OBSERVERS, Observer
from edgeq.recovery.registry import LAYER_STEPS
from edgeq.registry import Registry
from tests.networks import batches, network


def test_what_is_registered_is_found_by_its_name_and_left_as_it_was():
    registry = Registry("step")

    def run(x, *, rate: float = 0.5, deep: bool = True):
        return x

    assert registry.register("run")(run) is run
    registry.register("halt")(lambda x: None)
    assert registry["run"] is run
    assert list(registry) == ["halt", "run"]
    assert "run" in registry
    assert "walk" not in registry
    assert registry.options("run") == {"rate": 0.5, "deep": True}
    assert registry.options("halt") == {}


def test_a_name_is_given_once():
    registry = Registry("step")
    registry.register("run")(len)
    with pytest.raises(SpecError) as error:
        registry.register("run")(abs)
    assert str(error.value) == "The step 'run' is already registered as <built-in function len>."
    assert registry["run"] is len


@pytest.mark.parametrize("look", [lambda registry: registry["runn"], lambda registry: registry.options("runn")])
def test_an_unknown_name_is_answered_with_the_nearest(look):
    registry = Registry("step")
    registry.register("run")(len)
    with pytest.raises(SpecError) as error:
        look(registry)
    assert str(error.value) == "Unknown step 'runn'. Did you mean 'run'? (Known: run.)"


def test_edgeqs_own_entries():
    assert {"minmax", "moving_average", "percentile", "squared_error"} <= set(OBSERVERS)
    assert "compensated_rounding" in LAYER_STEPS
    assert all(issubclass(OBSERVERS[name], Observer) for name in OBSERVERS)
    assert OBSERVERS.options("percentile") == {"percentile": 0.01}


def test_an_observer_of_another_package_is_named_in_a_preset_with_its_options(monkeypatch):
    monkeypatch.setattr(OBSERVERS, "_entries", dict(OBSERVERS._entries))  # taken back after the test

    @OBSERVERS.register("constant")
    class Constant(Observer):
        def __init__(self, spec, channels=None, axis=None, *, reach: float = 1.0):
            super().__init__(spec, channels, axis)
            self.reach = reach

        def range(self):
            return torch.tensor(-self.reach), torch.tensor(self.reach)

    preset = {"inherits": "WC8_AT8", "activation": {"observer": {"name": "constant", "reach": 2.55}}}
    wrapped = edgeq.PTCFxModule(network("separable"), preset).calibrate(batches())
    assert float(wrapped.module.quantizers()[0].scale) == pytest.approx(0.02)
    with pytest.raises(SpecError, match=r"Unknown key 'reech' in observer \(constant\)\. Did you mean 'reach'\?"):
        edgeq.load_preset({"activation": {"observer": {"name": "constant", "reech": 1.0}}})
