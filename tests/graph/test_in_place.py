"""Operations in place become ones that return a new tensor, without a change of what is computed."""

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

import edgeq
from edgeq.errors import TraceError
from edgeq.graph.in_place import IN_PLACE_FUNCTIONS, functionalize
from edgeq.graph.trace import trace
from tests.graph.parity import AS_WRITTEN, assert_exact, calibrated, images, relative_error


class Behind(nn.Module):
    """A function of the output of a convolution; what it writes, the output's other reader sees."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu, self.drop = nn.Conv2d(3, 8, 1), nn.ReLU(inplace=True), nn.Dropout(0.5, inplace=True)
        self.function = function

    def forward(self, x):
        y = self.conv(x)
        return self.function(self, y)


def add_both(m, y):
    z = y
    y += 1
    y *= 2
    y -= 0.5
    y /= 3
    return y + z


def relu_then_base(m, y):
    z = m.relu(y)
    return z + y


def methods(m, y):
    y.add_(1).mul_(0.5).clamp_(-0.2, 0.4)
    return y


def functions(m, y):
    torch.relu_(y)
    F.hardtanh(y, -0.5, 0.7, inplace=True)
    F.silu(y, inplace=True)
    return torch.sigmoid_(y)


def part(m, y):
    y[:, 0] = 1.0
    y[:, 2:4] *= 2
    y[:, -1] = y[:, 1]
    return y * 2


def sizes(m, y):
    count = y.size(1)
    n = count
    n += 1  # a number: count stays
    return y.reshape(y.size(0), count, -1) * n


def halves(m, y):
    first, second = y[0], y[1]
    first.relu_()  # the other half does not see it
    return first - second


def by_name(m, y):
    z = y * 1
    F.relu(input=z, inplace=True)
    return z + y


def filled(m, y):
    z = y * 1
    z[:, 1].zero_()
    y.select(1, 2).fill_(0.25)
    y.select(-1, 0).copy_(z[..., 1])
    return y + z


def whole(m, y):
    z, w = y * 2, y.clone()
    z.fill_(0.5)
    w.copy_(y[:, :1])
    torch.zero_(y)
    return y + z * w


def part_of_a_part(m, y):
    rows = y[:, 2:6]
    rows[:, :, 1].mul_(3)
    rows.clamp_(-0.5, 0.5)
    return y


def part_between_sizes(m, y):
    half = y.size(1) // 2
    y[:, :half].relu_()
    y[:, -1, None].add_(1)
    return y


def view_written(m, y):
    y[:, :4].relu_()
    return y


FUNCTIONS = [
    *(add_both, relu_then_base, methods, functions, part, halves, sizes, by_name),
    *(filled, whole, part_of_a_part, part_between_sizes, view_written),
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_was_written_in_place_is_read_by_everything_that_comes_later(function):
    model, x = Behind(function).eval(), images()
    wrapped = calibrated(model, x, bias_calibration_factor=0, rewrites=AS_WRITTEN)
    with torch.no_grad():
        assert torch.equal(wrapped.module.run_float(x), model(x))
    assert_exact(wrapped, x)
    assert relative_error(wrapped(x), model(x)) < 0.03


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_operation_in_place_is_left(function):
    network = edgeq.PTCFxModule(Behind(function)).module
    names = [str(node.target) for node in network.fx_graph.nodes if node.op == "call_method"]
    assert [name for name in names if name.endswith("_")] == []
    assert not {node.target for node in network.fx_graph.nodes} & {*IN_PLACE_FUNCTIONS, operator.setitem}
    assert not any(node.kwargs.get("inplace") for node in network.fx_graph.nodes)
    called = {node.target for node in network.fx_graph.nodes if node.op == "call_module"}
    assert not any(getattr(network.get_submodule(path), "inplace", False) for path in called)


@pytest.mark.parametrize("written", IN_PLACE_FUNCTIONS)
def test_each_twin_gives_what_its_function_writes(written):
    others = dict.fromkeys(("iadd", "isub", "imul", "itruediv", "clamp_"), (0.5,)) | {"threshold_": (0.1, 0.3)}
    other = others.get(written.__name__, ())
    x, y = images(4, 4), images(4, 4, seed=1)
    graph = fx.Graph()
    nodes = graph.placeholder("x"), graph.placeholder("y")
    matmul = written is operator.imatmul
    graph.output(graph.call_function(written, nodes if matmul else (nodes[0], *other)))
    functionalize(graph, nn.Module())
    before, expected = x.clone(), written(x.clone(), *((y,) if matmul else other))
    assert torch.allclose(fx.GraphModule(nn.Module(), graph)(x, y), expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(x, before)


def base_written(m, y):
    flat = y.flatten(1)
    y.relu_()
    return flat


def view_is_assigned_to(m, y):
    flat = y.flatten(1)
    y.relu_()
    flat[0] = 0
    return flat


def module_writes(m, y):
    view = y.transpose(1, 2)
    return m.relu(y).sum() + view.sum()


def parts_overlap(m, y):
    first, second = y[:, :5], y[:, 3:]
    return first.relu_().sum() + second.sum()


def chosen_by_a_tensor(m, y):
    y[:, y.argmax(1)[0, 0]].relu_()  # a copy in PyTorch as well
    return y


def rows_of_a_list(m, y):
    y[[0, 1], 0].relu_()
    return y


def in_a_shape(m, y):
    y.view(-1).relu_()
    return y


REFUSED = [
    *(base_written, view_is_assigned_to, module_writes, parts_overlap),
    *(chosen_by_a_tensor, rows_of_a_list, in_a_shape),
]


@pytest.mark.parametrize("function", REFUSED)
def test_a_write_that_is_read_through_an_older_view_is_refused(function):
    model = Behind(function).eval()
    with pytest.raises(TraceError, match=r"writes in place into memory that '\w+' \(.+\) reads later"):
        functionalize(trace(model), model)


@pytest.mark.parametrize("name", ["uniform_", "normal_", "exponential_"])
def test_what_writes_and_has_no_other_form_is_refused(name):
    model = Behind(lambda m, y: getattr(y, name)()).eval()
    with pytest.raises(TraceError, match=rf"'{name}' \(.+, in the model itself\) writes in place, and has no form"):
        functionalize(trace(model), model)


def test_what_writes_no_number_stays():
    model = Behind(lambda m, y: y.requires_grad_(False) * 2).eval()
    graph = trace(model)
    functionalize(graph, model)
    assert "requires_grad_" in {node.target for node in graph.nodes}


def test_a_traced_graph_keeps_the_names_of_what_works_in_place():
    model = Behind(relu_then_base)
    assert functionalize(trace(model), model) == {"relu"}


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("name", ["tensor", "smaller tensor"])
def test_what_is_written_into_the_whole_is_exported(name, opset, tmp_path):
    values = {"tensor": lambda y: y + 1.0, "smaller tensor": lambda y: y[:, :1] * 2}

    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            y, z = self.conv(x), self.conv(-x)
            y[:] = values[name](y)
            return self.last(y) + self.last(z)

    model, x = Written().eval(), images()
    wrapped = calibrated(model, x, example_inputs=x, bias_calibration_factor=0.0)
    assert relative_error(assert_exact(wrapped, x), model(x)) < 0.03
    assert wrapped.export(x, tmp_path / "model.onnx", opset_version=opset).passed
