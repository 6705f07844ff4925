"""Named algorithms, which other packages can add to."""

import pytest

from edgeq.errors import SpecError
from edgeq.observers import OBSERVERS, Observer
from edgeq.recovery.registry import RECOVERY_STEPS
from edgeq.registry import Registry


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
    assert "compensated_rounding" in RECOVERY_STEPS
    assert all(issubclass(OBSERVERS[name], Observer) for name in OBSERVERS)
    assert OBSERVERS.options("percentile") == {"percentile": 0.01}
