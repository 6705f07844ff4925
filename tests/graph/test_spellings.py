"""Operations that are written in terms of others: the same numbers, gradients and names."""

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

import edgeq
from edgeq.graph.decompose import FUNCTIONS, MODULES
from edgeq.graph.operators import TABLE, UNKNOWN, operator_of
from edgeq.graph.spellings import Extremes
from edgeq.graph.trace import trace
from tests.graph.parity import assert_exact, calibrated, group_of, images


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def run(function, x):
    """What a traced function gives, and what its graph calls."""
    model = Calls(function)
    graph = trace(model)
    names = {str(getattr(node.target, "__name__", node.target)) for node in graph.nodes if node.op.startswith("call")}
    return fx.GraphModule(model, graph)(x), names


SAME = {  # the function, and what its graph calls
    "square": (torch.square, {"mul"}),
    "power": (lambda x: x**2, {"mul"}),
    "power of a power": (lambda x: (x**2.0).pow(3), {"mul", "pow"}),
    "base": (lambda x: 2**x, {"pow"}),
    "glu": (lambda x: F.glu(x, 1), {"chunk", "getitem", "sigmoid", "mul"}),
    "glu module": (nn.GLU(), {"chunk", "getitem", "sigmoid", "mul"}),
    "all": (lambda x: x.max() - torch.min(x), {"amax", "amin", "sub"}),
    "values": (lambda x: torch.max(x, 1)[0] + x.min(dim=1).values, {"amax", "argmax", "amin", "argmin", "add"}),
    "kept": (lambda x: x.max(2, True)[0] * torch.max(x, 2, keepdim=True)[0], {"amax", "argmax", "mul"}),
    "of two": (lambda x: torch.max(x, x.flip(0)) + x.min(other=-x), {"max", "flip", "min", "neg", "add"}),
    "places": (lambda x: x.max(1)[1] + torch.min(x, 1).indices, {"amax", "argmax", "amin", "argmin", "add"}),
    "where": (lambda x: x.where(x > 0, -x), {"gt", "neg", "where"}),
    "addcmul": (lambda x: torch.addcmul(x, x, x, value=2), {"mul", "add"}),
    "addcdiv": (lambda x: x.addcdiv(x, x.abs() + 1), {"abs", "add", "truediv"}),
    "quarter turns": (lambda x: torch.rot90(x, 1, (1, 2)) + x.rot90(3, [1, 2]), {"flip", "transpose", "add"}),
    "half a turn": (lambda x: x.rot90(2, (2, 3)), {"flip"}),
    "no turn": (lambda x: x.rot90(4) + x.rot90(-4), {"add"}),
    "flips": (lambda x: torch.fliplr(x) + x.flipud(), {"flip", "add"}),
    "shuffle": (nn.ChannelShuffle(2), {"unflatten", "transpose", "flatten"}),
    "adjoint": (torch.adjoint, {"transpose"}),
    "ravel": (torch.ravel, {"flatten"}),
    "narrow": (lambda x: x.narrow_copy(1, 0, 2), {"narrow"}),
    "extremes": (lambda x: torch.fmax(x, -x) + x.fmin(-x), {"maximum", "minimum", "neg", "add"}),
    "outer": (lambda x: torch.outer(x[0, 0, 0], x[0, 0, 1]), {"getitem", "unsqueeze", "mul"}),
}


@pytest.mark.parametrize("name", SAME)
def test_the_numbers_are_the_same_and_the_operations_the_tables(name):
    function, calls = SAME[name]
    x = images(2, 4, 4, 6)
    found, names = run(function, x)
    assert torch.allclose(found, function(x), rtol=1e-6, atol=1e-6)  # where PyTorch rounds once
    assert names == calls


def test_an_extreme_is_a_pair_as_pytorch_gives_it():
    found, _ = run(lambda x: x.max(1), images(2, 4))
    assert isinstance(found, Extremes)
    values, indices = images(2, 4).max(1)
    assert torch.equal(found.values, values)
    assert torch.equal(found.indices, indices)


def test_places_that_nobody_reads_are_not_looked_for():
    class Points(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(3, 8, 1)

        def forward(self, x):
            return torch.max(self.conv(x), 2, keepdim=True)[0].flatten(1)

    model, x = Points().eval(), images(2, 3, 16)
    wrapped = calibrated(model, x)
    targets = [node.target for node in wrapped.module.fx_graph.nodes]
    assert torch.argmax not in targets
    assert group_of(wrapped, "amax") == "conv"
    assert [quantizer.name for quantizer in wrapped.module.quantizers()] == ["x", "conv"]
    assert_exact(wrapped, x)


NOT_CALLED = {  # containers, bases, and what PyTorch makes into another class at the first call
    *("Module", "Container", "Sequential", "ModuleList", "ModuleDict", "ParameterList", "ParameterDict"),
    *("DataParallel", "RNNBase", "RNNCellBase", "NLLLoss2d"),
}


def test_every_module_of_pytorch_has_a_row_or_is_written_out():
    known = {cls for row in TABLE for cls in row.modules} | set(MODULES)
    classes = {
        name: value for name, value in vars(nn).items() if isinstance(value, type) and issubclass(value, nn.Module)
    }
    unknown = {name for name, cls in classes.items() if cls not in known and not name.startswith("Lazy")}
    assert unknown == NOT_CALLED


INNER = {  # helpers of PyTorch's own, dispatchers to functions that have a row, and what is for other devices
    *("boolean_dispatch", "assert_int_or_pair", "handle_torch_function", "has_torch_function"),
    *("has_torch_function_unary", "has_torch_function_variadic", "multi_head_attention_forward", "conv_tbc", "pdist"),
    *("upsample", "upsample_nearest", "upsample_bilinear"),
    *("fractional_max_pool2d_with_indices", "fractional_max_pool3d_with_indices", "grouped_mm", "scaled_mm"),
    *("scaled_grouped_mm", "hardtanh_", "celu_", "elu_", "leaky_relu_", "relu_", "rrelu_", "selu_", "threshold_"),
}


def test_every_function_of_pytorchs_networks_has_a_row_or_is_written_out():
    graph = fx.Graph()
    public = {name: value for name, value in vars(F).items() if callable(value) and name[0].islower()}
    unknown = {
        name
        for name, function in public.items()
        if operator_of(graph.call_function(function), None) is UNKNOWN
        and function not in FUNCTIONS
        and getattr(function, "__module__", "").startswith("torch")
    }
    assert unknown == INNER


@pytest.mark.parametrize("training", [False, True])
def test_a_dropout_that_never_drops_does_not_do_so_in_training_either(training):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.rate = nn.Conv2d(3, 4, 1), 0.5

        def forward(self, x):
            x = F.dropout(self.conv(x), 0.5, training=False)
            x = F.dropout2d(x, self.rate, False)
            return F.dropout(x, self.rate, self.training) if training else x

    model = Net().train()
    wrapped, x = edgeq.QATFxModule(model, total_epochs=1, num_observer_update_epochs=0).train(), images()
    assert len(wrapped.module.quantization.dropouts) == training
    torch.manual_seed(3)
    expected = model(x)
    torch.manual_seed(3)
    assert torch.equal(wrapped(x), expected)
    assert torch.equal(wrapped(x), wrapped(x)) is not training
    assert torch.equal(wrapped.eval()(x), model.eval()(x))


def test_looking_for_such_dropouts_uses_no_random_numbers_and_leaves_the_mode():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.skipped = nn.Conv2d(3, 4, 1), 0

        def forward(self, x):
            if self.training and torch.rand(1) > 2:  # as networks that drop layers have it
                return x
            return F.dropout(self.conv(x), 0.5, self.training)

    model = Net().eval()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    wrapped = edgeq.QATFxModule(model, total_epochs=1)
    assert torch.equal(torch.rand(1), expected)
    assert not model.training
    assert len(wrapped.module.quantization.dropouts) == 1


def test_a_dropout_that_always_drops_stays_one_call_in_float():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return F.dropout(self.conv(x), 0.5)

    model, x = Net().eval(), images()
    wrapped = calibrated(model, x)
    assert wrapped.module.reasons["dropout"].startswith("stays float: another floating type, or values that are drawn")
    found = wrapped.convert()(x)
    assert 0.3 < float((found == 0).float().mean()) < 0.7
