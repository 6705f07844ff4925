"""Every entry of the table of operators: what it means for quantization is what is done, in integers too."""

import pytest
from torch.nn import functional

from edgeq.graph.decompose import FUNCTIONS, METHODS, MODULES
from edgeq.graph.in_place import functionalize
from edgeq.graph.kinds import module_of
from edgeq.graph.masks import mask_scores
from edgeq.graph.operators import TABLE, Behaviour, behaviour_of, operator_of
from edgeq.graph.part import part
from edgeq.graph.trace import trace
from edgeq.modules.affine import Affine
from edgeq.modules.functional_norm import FrozenNorm, FunctionalNorm
from edgeq.modules.matmul import QuantizedMatmul
from edgeq.modules.norm_slice import NormSlice
from edgeq.modules.normalization import Normalization
from edgeq.modules.stored import StoredWeights
from edgeq.modules.stubs import QuantStub
from edgeq.modules.torch_class import torch_class
from tests.graph.coverage_cases import ABSORBED, COMPUTED, ISLANDS, LAYERS, MOVED, STEPS, Between
from tests.graph.operator_cases import Network, cases, shape
from tests.graph.parity import AS_WRITTEN, assert_exact, calibrated, group_of, images, relative_error

CASES = list(cases())
SPELLINGS = [*f"{MOVED} {ABSORBED} {COMPUTED} {LAYERS}".split(), *STEPS, *ISLANDS]
UNREACHABLE = {  # what tracing never records under this name, or only with a device
    *(functional.sigmoid, functional.tanh, "__radd__", "rsub", "cuda"),
    QuantStub,  # marks a region: tests/graph/test_region.py
    mask_scores,  # tests/graph/test_attention.py
    *(Affine, NormSlice, Normalization),  # made by passes: tests/graph/passes
    part,  # tests/graph/test_tuples.py
    *(FunctionalNorm, FrozenNorm),  # made of functions: tests/graph/test_functional_norms.py
}
LOOSE = {"embedding", "embedding_bag", "integer", "comparison", "masked_fill"}  # not continuous, or nearly so


def operation_of(row, call, dimensions):
    """The float network, its graph, and the last node of the operation that the case is about."""
    model = Network(call, dimensions).eval()
    graph = trace(model)
    functionalize(graph, model)
    calls = [node for node in graph.nodes if node.op.startswith("call")]
    if row:
        calls = [node for node in calls if operator_of(node, module_of(node, model)).name == row]
    return model, graph, calls[-1]


@pytest.mark.parametrize(("name", "row", "dimensions", "call"), CASES, ids=[case[0] for case in CASES])
def test_an_operation_converts_exactly_and_is_placed_as_its_row_says(name, row, dimensions, call):
    model, _, node = operation_of(row, call, dimensions)
    x = images(*shape(dimensions))
    wrapped = calibrated(model, x, rewrites=AS_WRITTEN)
    assert_exact(wrapped, x)
    if row not in LOOSE:
        assert relative_error(wrapped(x), model(x)) < 0.06
    PLACED[behaviour_of(node, module_of(node, model))](wrapped, node, operator_of(node, module_of(node, model)), model)


def layer(wrapped, node, row, model):
    assert len(wrapped.module.quantized_layers()) == 2


def matmul(wrapped, node, row, model):
    assert any(isinstance(module, QuantizedMatmul) for module in wrapped.modules())


def own(wrapped, node, row, model):
    assert group_of(wrapped, node.name) not in (None, "conv")


def fixed(wrapped, node, row, model):
    assert wrapped.module.quantization.tensors[group_of(wrapped, node.name)].fixed == row.range


def share(wrapped, node, row, model):
    assert group_of(wrapped, node.name) == "conv"


def stored(wrapped, node, row, model):
    assert any(isinstance(module, StoredWeights) for module in wrapped.modules())
    assert row.name == "recurrent" or group_of(wrapped, node.name) not in (None, "conv")


def clip(wrapped, node, row, model):
    (conv,) = wrapped.module.quantized_layers()
    assert (conv.site.floor, conv.site.ceiling) == row.bounds(node, module_of(node, model))
    assert node.name not in [other.name for other in wrapped.module.fx_graph.nodes]


def stays_float(wrapped, node, row, model):
    assert len(row.note) > 10
    assert wrapped.module.reasons[node.name] == f"stays float: {row.note}"


def plain(wrapped, node, row, model):
    assert group_of(wrapped, node.name) is None


PLACED = {
    Behaviour.LAYER: layer,
    Behaviour.MATMUL: matmul,
    Behaviour.OWN: own,
    Behaviour.STORED: stored,
    Behaviour.FIXED: fixed,
    Behaviour.SHARE: share,
    Behaviour.CLIP: clip,
    Behaviour.FLOAT: stays_float,
    Behaviour.PLAIN: plain,
}


def test_every_entry_of_the_table_is_called_by_a_case():
    """Here or in coverage_cases.py; of rows in which nothing is decided by the entry, one entry."""
    called = {*FUNCTIONS, *METHODS, *MODULES}  # written out while tracing; tests/graph/test_spellings.py
    models = [Network(call, dimensions).eval() for _, _, dimensions, call in CASES]
    models += [Between(spelling) for spelling in SPELLINGS]
    for model in models:
        graph = trace(model)
        called.update(node.target for node in graph.nodes if node.op.startswith("call"))
        functionalize(graph, model)
        called.update(torch_class(module_of(node, model)) for node in graph.nodes if node.op == "call_module")
        called.update(node.target for node in graph.nodes if node.op.startswith("call"))
    missing = set()
    for row in TABLE:
        entries = {*row.modules, *row.functions, *row.methods}
        is_uniform = row.behaviour in (Behaviour.FLOAT, Behaviour.PLAIN) and row.holds is None
        if not (is_uniform and entries & called):
            missing |= entries - called
    assert missing == UNREACHABLE
