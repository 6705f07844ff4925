"""Arguments of a forward: which are inputs of the graph, which stay as they were, and what is said when they change."""

import collections
import copy
import inspect
import pickle
from typing import NamedTuple

import onnx
import pytest
import torch
from torch import nn

import edgeq
from edgeq.errors import SpecError, TraceError
from tests.graph.parity import assert_exact, calibrated, images, relative_error
from tests.scenarios.wired import quantizers

X, Y = images(2, 6), images(2, 6, seed=1)


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(6, 6)


class Defaults(Base):
    def forward(self, x, mask=None, double=False, times=1, offset=0.5, mode="add", *, extra=None):
        y = self.fc(x) + offset
        y = y if mask is None else y * mask
        y = y * 2 if double else y
        for _ in range(times - 1):
            y = y + x
        y = y - x if mode == "sub" else y
        return y if extra is None else y + extra


class Tensors(Base):
    def forward(self, x, shift=torch.tensor(2.0)):  # noqa: B008 - what is tested
        return self.fc(x) + shift


class Any(Base):
    def forward(self, x, *others, **named):
        y = self.fc(x)
        for other in others:
            y = y + other
        return y * named["scale"] - named.get("shift", 0.0)


class Batch(NamedTuple):
    image: torch.Tensor
    label: torch.Tensor
    is_last: bool = False


class Held(Base):
    def forward(self, batch, extra=None):
        x, y = batch["pair"]
        z = self.fc(x) + y
        for tensor in batch["more"]:
            z = z - tensor
        return z if extra is None else z + self.fc(extra.image)


def inputs_of(wrapped):
    """The names of the inputs that anything computes with."""
    nodes = wrapped.module.fx_graph.nodes
    checks = {"require_value", "require_size"}
    return [
        node.target
        for node in nodes
        if node.op == "placeholder" and any(getattr(user.target, "__name__", "") not in checks for user in node.users)
    ]


def called(network, given):
    return network(**given) if isinstance(given, dict) else network(*given)


def prepared(model, given):
    """The calibrated network, after a check that it gives nearly what the model does, and what it converts to."""
    wrapped = edgeq.PTCFxModule(model.eval(), "WC8_AT8", example_inputs=given).train()
    called(wrapped, given)
    wrapped.eval()
    with torch.no_grad():
        found = called(wrapped, given)
        assert torch.equal(found, called(wrapped.convert(), given))
        assert relative_error(found, called(copy.deepcopy(model), given)) < 0.03
    return wrapped


# ---- defaults


def test_without_example_inputs_what_has_no_default_is_an_input_and_a_float_too():
    wrapped = calibrated(Defaults().eval(), X)
    assert inputs_of(wrapped) == ["x", "offset"]
    assert_exact(wrapped, X)
    float_network = edgeq.PTCFxModule(Defaults()).module.run_float
    assert torch.allclose(float_network(X, offset=0.25), Defaults()(X, offset=0.25))


OTHERS = {"mask": Y, "double": True, "times": 3, "mode": "sub", "extra": Y}


@pytest.mark.parametrize("name", OTHERS)
def test_another_value_of_what_kept_its_default_is_an_error_that_names_it(name):
    wrapped = calibrated(Defaults().eval(), X)
    given = "Tensor" if isinstance(OTHERS[name], torch.Tensor) else repr(OTHERS[name])
    default = repr(inspect.signature(Defaults.forward).parameters[name].default)
    message = f"The argument '{name}' was {default} when the model was captured, and cannot be another now, {given}."
    for network in (wrapped, wrapped.convert(), copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped.convert()))):
        with pytest.raises(TraceError) as caught:
            network(X, **{name: OTHERS[name]})
        assert str(caught.value).startswith(message)
        assert "Give example_inputs" in str(caught.value)
        network(X, mask=None, double=False, times=1, mode="add", extra=None)  # the same may be said


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ((X, Y), ["x", "mask"]),
        ((X, Y, True), ["x", "mask"]),
        ((X, None, False, 3), ["x"]),
        ((X, None, False, 1, 0.25), ["x", "offset"]),
        ({"x": X, "mode": "sub", "extra": Y}, ["x", "extra"]),
        ({"extra": Y, "double": True, "x": X, "times": 2}, ["x", "extra"]),  # in any order
        (X, ["x"]),
    ],
    ids=str,
)
def test_example_inputs_say_what_is_an_input_and_what_the_rest_is(given, inputs):
    wrapped = prepared(Defaults(), given if isinstance(given, tuple | dict) else (given,))
    assert [name for name in inputs_of(wrapped) if name != "times"] == inputs


def test_a_switch_of_the_example_inputs_cannot_be_another_later():
    wrapped = prepared(Defaults(), (X, Y, True, 2))
    for network in (wrapped, wrapped.convert()):
        with pytest.raises(TraceError, match=r"'double' was True when the model was captured, and .* now, False"):
            network(X, Y, False, 2)
        with pytest.raises(TraceError, match=r"'double' was True .* now, False"):
            network(X, Y)  # the default is another
        with pytest.raises(TraceError, match=r"'times' was 2 when the model was captured, and .* now, 3"):
            network(X, Y, True, 3)  # a count that decides


def test_a_number_that_decides_nothing_is_an_input():
    network = edgeq.PTCFxModule(Defaults(), example_inputs=(X, None, False, 1, 0.25)).module.run_float
    assert torch.allclose(network(X, None, False, 1, -0.5), Defaults()(X, offset=-0.5))


def test_a_tensor_that_is_a_default_stays_unless_it_is_given():
    wrapped = prepared(Tensors(), (X,))
    assert relative_error(wrapped(X), Tensors()(X)) < 0.03
    with pytest.raises(TraceError, match="'shift' was None when the model was captured"):
        wrapped(X, torch.tensor(3.0))
    given = edgeq.PTCFxModule(Tensors(), example_inputs=(X, Y)).module.run_float
    assert torch.allclose(given(X, -Y), Tensors()(X, -Y))


# ---- any number of arguments


def test_a_forward_of_any_number_of_arguments_needs_example_inputs():
    with pytest.raises(TraceError, match=r"Any.forward takes \*others: give example_inputs, which say how many"):
        edgeq.graph.trace.trace(Any())


def test_arguments_of_any_number_and_name():
    given = {"x": X, "scale": Y, "shift": Y}
    wrapped = prepared(Any(), given)
    assert inputs_of(wrapped) == ["x", "scale", "shift"]
    with pytest.raises(TypeError, match="other"):
        wrapped(**given, other=Y)


class Several(Base):
    def forward(self, x, *others, last=None):
        y = self.fc(x)
        for other in others:
            y = y + other
        return y if last is None else y * last


def test_positional_arguments_of_any_number():
    wrapped = prepared(Several(), (X, Y, X))
    assert inputs_of(wrapped) == ["x", "others_0", "others_1"]
    assert quantizers(wrapped) == ["x", "others_0", "others_1", "fc", "add", "add_1"]
    with pytest.raises(TypeError, match="others_1"):
        wrapped(X, Y)
    with pytest.raises(TraceError, match="'last' was None"):
        wrapped(X, Y, X, last=Y)


# ---- containers


def held():
    return {"pair": (X, Y), "more": [Y, X * 0.5], "name": "training", "size": None}


def test_containers_are_taken_apart_and_what_is_no_tensor_in_them_stays():
    model = Held()
    wrapped = prepared(model, (held(),))
    assert len(quantizers(wrapped)) == 8  # four tensors, the layer, a sum and two differences
    other = held() | {"name": "evaluation"}
    for network in (wrapped, wrapped.convert()):
        with pytest.raises(TraceError, match=r"The argument \"batch\['name'\]\" was 'training' when"):
            network(other)
        with pytest.raises(TraceError, match=r"batch\['size'\]"):
            network(held() | {"size": 3})


def test_named_tuples_are_containers():
    batch = Batch(X, Y)
    wrapped = prepared(Held(), (held(), batch))
    with pytest.raises(TraceError, match=r"extra.is_last' was False when"):
        wrapped(held(), batch._replace(is_last=True))
    assert wrapped(held(), batch._replace(label=X)).shape == X.shape  # which is not used


def test_a_dictionary_is_one_argument_unless_its_keys_are_the_arguments_names():
    class Keys(Base):
        def forward(self, features):
            return self.fc(features["x"]) if isinstance(features, dict) else self.fc(features)

    assert inputs_of(prepared(Keys(), ({"x": X},))) == ["features"]
    by_name = edgeq.PTCFxModule(Keys(), example_inputs={"features": X})
    assert torch.equal(by_name.module.run_float(X), by_name.module.fc(X))
    ordered = collections.OrderedDict(x=X)
    network = edgeq.PTCFxModule(Keys(), example_inputs=ordered).module
    assert torch.equal(network.run_float(ordered), by_name.module.fc(X))


# ---- what does not fit


def test_inputs_that_the_forward_does_not_take_are_an_error():
    with pytest.raises(SpecError, match=r"Several.forward\(x, \*others, last=None\) does not take example_inputs: m"):
        edgeq.PTCFxModule(Several(), example_inputs=())
    with pytest.raises(SpecError, match=r"does not take example_inputs: too many positional"):
        edgeq.PTCFxModule(Tensors(), example_inputs=(X, Y, X))


# ---- export


def test_exported_inputs_are_in_the_order_of_the_forward_and_only_those_in_use(tmp_path):
    wrapped = prepared(Defaults(), {"extra": Y, "x": X, "mask": Y, "double": True})
    for given in ({"x": X, "mask": Y, "double": True, "extra": Y}, (X, Y, True, 1, 0.5, "add", Y)):
        wrapped.export(given, tmp_path / "model.onnx")
        names = [value.name for value in onnx.load(tmp_path / "model.onnx").graph.input]
        assert names == ["x", "mask", "extra"]
