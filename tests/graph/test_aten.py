"""Operators of ATen: each function that stands for one gives its numbers, and is a row of the table."""

# ruff: noqa: E501 - a table

import pytest
import torch
from torch import fx, nn

from edgeq.graph.aten import SPECIAL, raised
from edgeq.graph.exported import _Appending, trace_exported
from edgeq.graph.in_place import functionalize
from edgeq.graph.kinds import floating_nodes, module_of
from edgeq.graph.operators import operator_of
from edgeq.graph.rewrite import drop_unread, put_input_first
from edgeq.graph.trace import trace
from tests.graph.coverage_cases import ABSORBED, COMPUTED, ISLANDS, LAYERS, MOVED, STEPS, Between
from tests.graph.parity import images

aten = torch.ops.aten
X, Y, Z = images(2, 4, 6, 6), images(2, 4, 6, 6, seed=1), images(2, 4, 6, seed=2)
V, ROWS, PLACES = images(2, 4, 4, 4, 4, seed=3), images(5, 6, seed=4), torch.tensor([[0, 4], [3, 3]])
WEIGHT, BIAS, SLOPE = images(5, 6, seed=5), images(5, seed=6), images(4, seed=7)
MEAN, VAR, THETA = images(4, seed=8), images(4, seed=9).abs() + 0.5, images(2, 2, 3, seed=10)
GRID = images(2, 3, 3, 2, seed=11).tanh()


def resized(rank, x, *options):
    vec = getattr(aten, f"upsample_{rank}").vec
    return [(vec, (x, None, *options, [1.5] * (x.dim() - 2)), {}), (vec, (x, [5] * (x.dim() - 2), *options, None), {})]


CALLS = {
    "linear": [(aten.linear.default, (X, WEIGHT), {}), (aten.linear.default, (X, WEIGHT, BIAS), {})],
    "embedding": [(aten.embedding.default, (ROWS, PLACES), {}), (aten.embedding.default, (ROWS, PLACES, 3, False, True), {})],
    "batch_norm": [(aten.batch_norm.default, (X, SLOPE, MEAN, MEAN, VAR, False, 0.1, 1e-3, True), {})],
    "layer_norm": [(aten.layer_norm.default, (X, [6], images(6), None, 1e-3), {}), (aten.layer_norm.default, (X, [6, 6]), {})],
    "group_norm": [(aten.group_norm.default, (X, 2, SLOPE, MEAN, 1e-3), {}), (aten.group_norm.default, (X, 4), {})],
    "instance_norm": [(aten.instance_norm.default, (X, SLOPE, MEAN, MEAN, VAR, False, 0.1, 1e-3, True), {}),
                      (aten.instance_norm.default, (X, None, None, None, None, True, 0.1, 1e-5, True), {})],
    **{name: [(getattr(aten, name).default, (X, 0.5, False), {})]
       for name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")},
    "scaled_dot_product_attention": [(aten.scaled_dot_product_attention.default, (X, Y, X, None, 0.0, True), {"scale": 0.3})],
    **{name: [(getattr(aten, name).default, (X,), {})]
       for name in ("silu", "mish", "hardswish", "hardsigmoid", "relu6", "selu", "log_sigmoid", "celu", "alias", "lift_fresh", "rrelu",
                    "lift_fresh_copy", "mT", "mH")},
    "gelu": [(aten.gelu.default, (X,), {}), (aten.gelu.default, (X,), {"approximate": "tanh"})],
    "hardtanh": [(aten.hardtanh.default, (X,), {}), (aten.hardtanh.default, (X, -0.2, 0.3), {})],
    "leaky_relu": [(aten.leaky_relu.default, (X, 0.3), {})],
    "elu": [(aten.elu.default, (X, 0.5), {}), (aten.elu.default, (X, 0.5, 2, 3), {})],
    "softplus": [(aten.softplus.default, (X, 2, 10), {})],
    "threshold": [(aten.threshold.default, (X, 0.1, -0.4), {})],
    "glu": [(aten.glu.default, (X, 1), {})],
    "avg_pool1d": [(aten.avg_pool1d.default, (Z, [2], [1], [1], True, False), {})],
    "avg_pool2d": [(aten.avg_pool2d.default, (X, [3, 2], [2, 1], [1, 0], True, False, 5), {}), (aten.avg_pool2d.default, (X, [2, 2]), {})],
    "avg_pool3d": [(aten.avg_pool3d.default, (V, [2, 2, 2]), {})],
    "max_pool1d": [(aten.max_pool1d.default, (Z, [2], [1], [1], [2]), {})],
    "max_pool2d": [(aten.max_pool2d.default, (X, [3, 3], [2, 2], [1, 1], [1, 1], True), {}), (aten.max_pool2d.default, (X, [2, 2]), {})],
    "max_pool3d": [(aten.max_pool3d.default, (V, [2, 2, 2]), {})],
    "max_pool1d_with_indices": [(aten.max_pool1d_with_indices.default, (Z, [2], [1]), {})],
    "max_pool2d_with_indices": [(aten.max_pool2d_with_indices.default, (X, [3, 3], [2, 2], [1, 1]), {})],
    "max_pool3d_with_indices": [(aten.max_pool3d_with_indices.default, (V, [2, 2, 2]), {})],
    "adaptive_avg_pool1d": [(aten.adaptive_avg_pool1d.default, (Z, [4]), {})],
    "adaptive_avg_pool2d": [(aten.adaptive_avg_pool2d.default, (X, [4, 1]), {})],
    "adaptive_avg_pool3d": [(aten.adaptive_avg_pool3d.default, (V, [2, 3, 1]), {})],
    "adaptive_max_pool1d": [(aten.adaptive_max_pool1d.default, (Z, [4]), {})],
    "adaptive_max_pool2d": [(aten.adaptive_max_pool2d.default, (X, [4, 1]), {})],
    "adaptive_max_pool3d": [(aten.adaptive_max_pool3d.default, (V, [2, 3, 1]), {})],
    "pad": [(aten.pad.default, (X, [1, 0, 2, 1]), {}), (aten.pad.default, (X, [1, 2], "constant", 0.5), {}),
            (aten.pad.default, (X, [1, 1, 2, 2], "reflect"), {})],
    "constant_pad_nd": [(aten.constant_pad_nd.default, (X, [1, 0]), {}), (aten.constant_pad_nd.default, (X, [-1, 2, 0, 1], 0.5), {})],
    "pixel_shuffle": [(aten.pixel_shuffle.default, (X, 2), {})],
    "pixel_unshuffle": [(aten.pixel_unshuffle.default, (X, 3), {})],
    **{f"atleast_{rank}d": [(getattr(aten, f"atleast_{rank}d").default, (BIAS,), {})] for rank in (1, 2, 3)},
    "softmax": [(aten.softmax.int, (X, 1), {}), (aten.softmax.int, (X, -1, torch.float64), {})],
    "slice": [(aten.slice.Tensor, (X, 1, 1, 3), {}), (aten.slice.Tensor, (X, -1, 0, 2**63 - 1, 2), {}), (aten.slice.Tensor, (X, -2, -3), {}),
              (aten.slice.Tensor, (X, 0, 0, 2**63 - 1), {}), (aten.slice.Tensor, (X, 0, None, -1), {})],
    "index": [(aten.index.Tensor, (X, [None, torch.tensor([3, 0])]), {}), (aten.index.Tensor, (X, [PLACES[:, 0] // 4, None, PLACES[0]]), {})],
    "split": [(aten.split.Tensor, (X, 3, 1), {}), (aten.split.sizes, (X, [1, 3], 1), {})],
    "split_with_sizes": [(aten.split_with_sizes.default, (X, [2, 4], -1), {})],
    "unfold": [(aten.unfold.default, (X, 2, 3, 1), {})],
    "transpose": [(aten.transpose.int, (X, 1, -1), {})],
    "t": [(aten.t.default, (ROWS,), {})],
    "numpy_T": [(aten.numpy_T.default, (ROWS,), {})],
    "broadcast_tensors": [(aten.broadcast_tensors.default, ([X, SLOPE[:, None, None]],), {})],
    "meshgrid": [(aten.meshgrid.default, ([BIAS, SLOPE],), {}), (aten.meshgrid.indexing, ([BIAS, SLOPE],), {"indexing": "xy"})],
    "view": [(aten.view.default, (X, [2, -1]), {}), (aten.view.dtype, (X, torch.int32), {})],
    "im2col": [(aten.im2col.default, (X, [2, 3], [1, 2], [1, 0], [2, 1]), {})],
    "col2im": [(aten.col2im.default, (images(2, 16, 25), [6, 6], [2, 2], [1, 1], [0, 0], [1, 1]), {})],
    "grid_sampler": [(aten.grid_sampler.default, (X, GRID * 1.4, mode, padding, align), {})
                     for mode, padding, align in ((0, 0, False), (1, 1, True), (2, 2, False))],
    "affine_grid_generator": [(aten.affine_grid_generator.default, (THETA, [2, 4, 5, 3], align), {}) for align in (True, False)],
    "to": [(aten.to.dtype, (X, torch.float64), {}), (aten.to.device, (X, torch.device("cpu"), torch.float16), {}),
           (aten.to.other, (X, PLACES), {}), (aten.to.dtype_layout, (X,), {"dtype": torch.float64, "layout": torch.strided})],
    "_to_copy": [(aten._to_copy.default, (X,), {"dtype": torch.float64})],
    "sym_size": [(aten.sym_size.int, (X, 2), {})],
    **{f"upsample_nearest{rank}d": resized(f"nearest{rank}d", x) for rank, x in ((1, Z), (2, X), (3, V))},
    **{f"_upsample_nearest_exact{rank}d": [(getattr(aten, f"_upsample_nearest_exact{rank}d").vec, (x, [5] * rank, None), {})]
       for rank, x in ((1, Z), (2, X), (3, V))},
    **{f"upsample_{name}": resized(name, x, True) + resized(name, x, False)
       for name, x in (("linear1d", Z), ("bilinear2d", X), ("trilinear3d", V), ("bicubic2d", X))},
    "rsub": [(aten.rsub.Scalar, (X, 2), {}), (aten.rsub.Tensor, (X, Y), {"alpha": 3})],
    "add": [(aten.add.Tensor, (X, Y), {"alpha": 2}), (aten.add.Scalar, (X, 3), {})],
    "sub": [(aten.sub.Tensor, (X, Y), {"alpha": 2}), (aten.sub.Tensor, (X, 1), {})],
    "mul": [(aten.mul.Tensor, (X, Y), {}), (aten.mul.Scalar, (X, 3), {})],
    "div": [(aten.div.Tensor, (X, Y), {}), (aten.div.Tensor_mode, (X, 0.3), {"rounding_mode": "floor"})],
    "pow": [(aten.pow.Tensor_Scalar, (X, 2), {}), (aten.pow.Tensor_Scalar, (X, 3), {}), (aten.pow.Scalar, (2, X), {}),
            (aten.pow.Tensor_Tensor, (X.abs(), Y), {})],
    "einsum": [(aten.einsum.default, ("bchw,bcwx->bchx", [X, Y]), {})],
    "tensordot": [(aten.tensordot.default, (X, Y, [2, 3], [2, 3]), {})],
    "cdist": [(aten.cdist.default, (Z, Z + 1, 2.0, None), {}), (aten.cdist.default, (Z, Z * 2, 1.0), {})],
}  # fmt: skip
OF_INTEGERS = {("to", 2), ("view", 1)}
UNKNOWN = {("elu", 1), *(("broadcast_tensors", index) for index in range(1))}  # as they are: float
CASES = [(name, index) for name, calls in CALLS.items() for index in range(len(calls))]


def graph_of(operator, args, kwargs):
    """The graph of one call, and the tensors that are its inputs."""
    graph, tensors = fx.Graph(), []
    tracer = _Appending(graph)
    tracer.root = nn.Module()

    def proxy(value):
        if not isinstance(value, torch.Tensor):
            return value
        tensors.append(value)
        return fx.Proxy(graph.placeholder(f"x{len(tensors)}"), tracer)

    args, kwargs = torch.utils._pytree.tree_map(proxy, (args, kwargs))
    result = raised(operator, tuple(args), kwargs)
    graph.output(torch.utils._pytree.tree_map(lambda x: x.node if isinstance(x, fx.Proxy) else x, result))
    return graph, tensors


@pytest.mark.parametrize(("name", "index"), CASES)
def test_what_stands_for_an_operator_gives_its_numbers_and_is_a_row_of_the_table(name, index):
    operator, args, kwargs = CALLS[name][index]
    graph, tensors = graph_of(operator, args, kwargs)
    found = torch.utils._pytree.tree_leaves(fx.GraphModule(nn.Module(), graph)(*tensors))
    expected = torch.utils._pytree.tree_leaves(operator(*args, **kwargs))
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    calls = [node for node in graph.nodes if node.op.startswith("call")]
    rows = {operator_of(node, None).name for node in calls}
    assert ("unknown" in rows) == ((name, index) in UNKNOWN)
    assert any(isinstance(node.target, torch._ops.OpOverload) for node in calls) == ((name, index) == ("elu", 1))


def test_every_function_that_stands_for_an_operator_is_tried():
    assert CALLS.keys() == SPECIAL.keys()


INPLACE = [
    (aten.relu_.default, (X,)), (aten.add_.Tensor, (X, Y)), (aten.silu_.default, (X,)), (aten.hardswish_.default, (X,)),
    (aten.leaky_relu_.default, (X, 0.2)), (aten.clamp_.default, (X, -0.1, 0.4)), (aten.dropout_.default, (X, 0.5, False)),
    (aten.elu_.default, (X, 0.7)), (aten.fill_.Scalar, (X, 0.5)), (aten.rrelu_.default, (X,)), (aten.hardsigmoid_.default, (X,)),
]  # fmt: skip


@pytest.mark.parametrize(("operator", "args"), INPLACE, ids=lambda value: str(value) if callable(value) else "")
def test_operators_in_place_write(operator, args):
    graph, tensors = graph_of(operator, args, {})
    inputs = [tensor.clone() for tensor in tensors]
    found = fx.GraphModule(nn.Module(), graph)(*inputs)
    expected = operator(args[0].clone(), *args[1:])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(inputs[0], expected)


def test_an_operator_that_no_function_has_is_called_as_it_is_and_stays_float():
    class Unknown(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            assert len(x.shape) == 4
            return aten._upsample_bilinear2d_aa.default(self.conv(x), [4, 4], False, None, None)

    model = Unknown().eval()
    graph = trace_exported(model, (), images())
    (call,) = (node for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload))
    assert operator_of(call, None).note == "not in edgeq's table of operators"
    assert torch.equal(fx.Interpreter(model, graph=graph).run(images()), model(images()))


def test_checks_that_torch_export_adds_are_none_of_the_graph():
    assert raised(aten._assert_scalar.default, (True, "message"), {}) is None


# ---- both ways of capture see the same


class Looking(Between):
    def forward(self, x):
        assert len(x.shape) == 4
        return super().forward(x)


SPELLINGS = [*f"{MOVED} {ABSORBED} {COMPUTED} {LAYERS}".split(), *STEPS, *ISLANDS]
WRITTEN_OUT = {  # by torch.export, in rows of their own
    *("power_pool", "local_norm", "softsign", "softmax", "shrink", "reduction", "distance", "similarity", "loss"),
    *("attention", "recurrent", "cell", "complex"),
}
MOVERS = {"getitem", "shape", "attribute", "same", "precision", "split", "size", "property", "comparison", "triangle"}


def rows_of(graph, model):
    put_input_first(graph)
    functionalize(graph, model)
    drop_unread(graph)
    calls = (node for node in floating_nodes(graph, model) if node.op.startswith("call"))
    return {operator_of(node, module_of(node, model)).name for node in calls} - MOVERS


def assert_same_rows(spelling):
    model = Between(spelling).eval()
    rows = rows_of(trace(model, (), images(2, 3, 6, 6)), model)
    model = Looking(spelling).eval()
    exported = trace_exported(model, (), images(2, 3, 6, 6))  # which compares the numbers
    found = rows_of(exported, model)
    assert "unknown" not in found or "unknown" in rows or rows & WRITTEN_OUT
    assert found == rows or rows & WRITTEN_OUT, spelling


OTHERWISE = (
    "h.data",
    "F.max_pool2d(h,2,return_indices=True)[0]",
    "torch.linalg.inv(h+torch.eye(6)*9)",
)  # refused, not read, constant
SAMPLE = [
    *("h.permute(0,2,3,1)", "h[:,torch.tensor([1,0])]", "F.relu(h)", "h**2", "torch.einsum('bchw,bcxw->bchx',h,h)", "h@h.mT"),
    *("F.gelu(h,approximate='tanh')", "torch.max(h,dim=2,keepdim=True)[0]", "F.linear(h,m.square.t())", "F.glu(h,1)", "h.softmax(dim=1)"),
]  # fmt: skip


@pytest.mark.parametrize("spelling", SAMPLE)
def test_torch_export_and_symbolic_tracing_see_the_same_operations(spelling):
    assert_same_rows(spelling)


@pytest.mark.sweep
@pytest.mark.parametrize("spelling", [spelling for spelling in SPELLINGS if spelling not in OTHERWISE])
def test_torch_export_and_symbolic_tracing_see_the_same_operations_in_every_spelling(spelling):
    assert_same_rows(spelling)
