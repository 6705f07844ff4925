"""Graphs of networks inside of a network, in the places where they are called."""

import torch
from torch import fx, nn

from edgeq.graph.convert import ConvertedModule
from edgeq.graph.inline import inlined
from tests.graph.parity import images
from tests.graph.parted import Plain, calibrated, data


def outer(*calls, path="part"):
    """A graph that calls the module at `path` with each of the arguments, made from its input, in turn."""
    graph = fx.Graph()
    value = graph.placeholder("x")
    for call in calls:
        args, kwargs = call(value)
        value = graph.call_module(path, args, kwargs)
    graph.output({"found": [value, value]})
    return graph


def converted(path="head"):
    return calibrated(Plain).convert().module.parts[path]


def run(graph, root, *inputs):
    return fx.Interpreter(root, graph=graph).run(*inputs)


def test_each_call_of_a_network_becomes_its_operations_over_the_same_modules():
    part = converted()
    root = nn.ModuleDict({"part": part})
    x = images(2, 8, 8, 8)
    found = inlined(outer(lambda v: ((v,), {})), root, {})
    assert [node.name for node in found.graph.nodes if node.op == "call_module"] == [
        f"part_{node.name}" for node in part.fx_graph.nodes if node.op == "call_module"
    ]
    assert {str(node.target).split(".")[0] for node in found.graph.nodes if node.op == "call_module"} == {"part"}
    assert list(found.operations.values()) == list(part.operations.values())
    assert list(found.operations) == [f"part_{name}" for name in part.operations]
    assert set(found.qconfigs) == set(found.operations)
    assert {qconfig.origin for qconfig in found.qconfigs.values()} == {"head"}
    expected = part(x)
    plain = nn.Module()
    plain.part = part.tree
    result = run(found.graph, plain, x)["found"]
    assert all(torch.equal(value, expected) for value in result)
    assert len(result) == 2


def test_two_calls_have_operations_of_their_own_with_names_of_their_own():
    part = converted()
    root = nn.ModuleDict({"part": part})
    found = inlined(outer(lambda v: ((v,), {}), lambda v: ((v,), {})), root, {})
    assert len(found.operations) == len(set(found.operations)) == 2 * len(part.operations)
    assert len([node for node in found.graph.nodes if node.op == "call_module"]) == 2 * len(part.operations) + 2


def test_arguments_go_in_by_name_or_position_and_structures_come_out_as_they_are():
    part = converted("backbone")
    root = nn.ModuleDict({"part": part})
    graph = fx.Graph()
    x = graph.placeholder("x")
    maps = graph.call_module("part", (), {"x": x})
    graph.output((graph.call_function(dict.__getitem__, (maps, "coarse")), maps))
    plain = nn.Module()
    plain.part = part.tree
    for index in (0, 1):
        found = inlined(graph, root, {})
        first, all_of_them = run(found.graph, plain, data()[index])
        expected = part(data()[index])
        assert torch.equal(first, expected["coarse"])
        assert torch.equal(all_of_them["fine"], expected["fine"])


def test_what_is_no_network_is_copied_with_its_own_operations():
    graph = outer(lambda v: ((v,), {}))
    root = nn.ModuleDict({"part": nn.ReLU()})
    found = inlined(graph, root, {"part": "relu"})
    assert (found.operations, found.qconfigs) == ({"part": "relu"}, {})
    assert torch.equal(run(found.graph, root, -images())["found"][0], (-images()).relu())
    assert len(graph.nodes) == 3  # the one that was given stays


def test_a_network_with_standalone_modules_is_converted_to_one_graph():
    module = calibrated(Plain, standalone=["head"]).convert().module
    assert not [node for node in module.fx_graph.nodes if isinstance(_module(node, module), ConvertedModule)]
    assert [name for name in module.operations if name.startswith("head_")] == list(module.qconfigs)
    assert {module.qconfig_of(name).origin for name in module.operations} == {"", "head"}


def _module(node, root):
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None
