"""Carries out an annotation: a user's model becomes a network with quantizers. Nothing is decided here."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import fx, nn

from edgeq.backends import BackendSpec
from edgeq.errors import NothingToQuantizeError, SpecError
from edgeq.graph.annotate import Annotation, Group, annotate
from edgeq.graph.capture import capture
from edgeq.graph.conditions import argument
from edgeq.graph.functional_norms import norm_modules
from edgeq.graph.fuse import Chain
from edgeq.graph.growing_tree import RESERVED
from edgeq.graph.hooks import lost_hooks, tell_of_lost_hooks
from edgeq.graph.in_place import functionalize, written_inputs
from edgeq.graph.kinds import module_of
from edgeq.graph.no_grad import stop_gradients
from edgeq.graph.operators import Behaviour, behaviour_of, data_inputs
from edgeq.graph.parameter_arithmetic import name_computed_parameters
from edgeq.graph.passes import Wanted, measure, rewrite_graph
from edgeq.graph.places import node_name
from edgeq.graph.prepared import PreparedModule
from edgeq.graph.program import Program
from edgeq.graph.quantization import Quantization
from edgeq.graph.rewrite import (
    drop_unread,
    dropout_modules,
    put_input_first,
    reshape_views,
)
from edgeq.graph.tuples import name_parts
from edgeq.modules.affine import Affine
from edgeq.modules.computed import take_over_hooks
from edgeq.modules.embedding import QuantizedEmbedding, QuantizedEmbeddingBag, TableQuantizer, reference
from edgeq.modules.float32_state import Float32State
from edgeq.modules.functional_norm import FunctionalNorm
from edgeq.modules.layer import QuantizedLayer, Site
from edgeq.modules.layers import QUANTIZED, Owner, QuantizedReference, shell
from edgeq.modules.matmul import MatmulSite, QuantizedMatmul
from edgeq.modules.norm_strategies import NORM_STRATEGIES
from edgeq.modules.operation import Operation
from edgeq.modules.recurrent import QuantizedGRU, QuantizedLSTM, QuantizedRNN
from edgeq.modules.stored import StoredWeights
from edgeq.modules.torch_class import torch_class
from edgeq.observers.moving_average import MovingAverageObserver
from edgeq.quantizers.tensor import TensorQuantizer
from edgeq.quantizers.weight import WeightQuantizer
from edgeq.recovery.calibration import Calibration
from edgeq.schedule import Schedule
from edgeq.spec import Method, QConfig, TensorSpec

STORED: dict[type[nn.Module], type[StoredWeights]] = {
    nn.Embedding: QuantizedEmbedding,
    nn.EmbeddingBag: QuantizedEmbeddingBag,
    nn.LSTM: QuantizedLSTM,
    nn.GRU: QuantizedGRU,
    nn.RNN: QuantizedRNN,
}


def prepare(
    model: nn.Module,
    qconfig: QConfig,
    backend: BackendSpec,
    schedule: Schedule,
    calibration: Calibration,
    is_qat: bool,
    untraced: Iterable[str | type[nn.Module]] = (),
    example_inputs: Any = None,
    rewrites: Wanted | None = None,
) -> PreparedModule:
    """The network that `model` becomes under a settled `qconfig`. It shares the model's parameters, not its
    modules: the model itself stays a float network. `rewrites` says which rewrites of the graph run, and which not.

    Raises TraceError for a model that cannot be captured, and SpecError for one without any layer to quantize.
    """
    if hasattr(model, RESERVED):
        raise SpecError(f"The model already has an attribute {RESERVED!r}, where edgeq keeps its state: rename it.")
    graph, root = _traced(model, untraced, example_inputs)
    put_input_first(graph)
    writes = written_inputs(graph, root)
    for path in functionalize(graph, root):
        root.get_submodule(path).inplace = False  # type: ignore[assignment]
    drop_unread(graph)
    reshape_views(graph)
    name_parts(graph, root)
    if is_qat:
        stop_gradients(graph, root)
    norms, dropouts = nn.ModuleDict(norm_modules(graph, root, is_qat)), nn.ModuleDict(dropout_modules(graph))
    quantization = Quantization(schedule, nn.ModuleDict(), nn.ModuleDict(), dropouts, norms)
    root.add_module(RESERVED, quantization)
    name_computed_parameters(graph, root, quantization.layers, f"{RESERVED}.layers")
    drop_unread(graph)
    changes, before = rewrite_graph(graph, root, qconfig, is_qat, rewrites, example_inputs)
    annotation = annotate(graph, root, qconfig)
    if not annotation.weights:
        raise NothingToQuantizeError(
            f"{type(model).__name__} has no layer that can be quantized: no convolution and no linear layer that "
            "the rules of the preset leave to quantize."
        )
    _Builder(graph, root, annotation, qconfig, is_qat).build()
    graph.lint()
    tell_of_lost_hooks(f"The quantized {type(model).__name__}", lost_hooks(model, graph))
    nodes = set(graph.nodes)
    groups = {node.name: group.name for node, group in annotation.group_of.items() if node in nodes}
    reasons = {node.name: reason for node, reason in annotation.reasons.items() if node in nodes}
    ruled = {node for node in nodes if node.name in groups or node in annotation.weights}
    places = {node.name: place for node, place in annotation.places.items() if node in ruled}
    decided = groups, reasons, places, changes
    _move_to_the_model(root)
    prepared = PreparedModule(root, graph, quantization, qconfig, backend, calibration, is_qat, *decided)
    prepared.keep(writes=writes)
    for norm in norms.children():
        cast(FunctionalNorm, norm).move(root, prepared.tree)
    measure(prepared, before, example_inputs)
    return prepared


def _traced(
    model: nn.Module, untraced: Iterable[str | type[nn.Module]], example_inputs: Any
) -> tuple[fx.Graph, nn.Module]:
    """A graph of our own and the tree that it is to run over. Constants that tracing met, which it leaves in the
    model as attributes, go with the tree as buffers, which follow it to other devices and are not saved.
    """
    known = set(vars(model))
    try:
        graph = capture(model, untraced, example_inputs)
        root = shell_tree(model)
        for name in sorted(set(vars(model)) - known):
            root.register_buffer(name, root.__dict__.pop(name), persistent=False)
        return graph, root
    finally:
        for name in set(vars(model)) - known:
            delattr(model, name)


def shell_tree(model: nn.Module) -> nn.Module:
    """Other module objects over the same parameters and buffers; shared modules stay shared."""
    return _shell_tree(model, {})


def _shell_tree(module: nn.Module, made: dict[int, nn.Module]) -> nn.Module:
    if isinstance(module, Program):  # quantized by itself
        return module
    if id(module) not in made:
        made[id(module)] = new = shell(module)
        children = module._modules.items()
        new._modules = {name: child if child is None else _shell_tree(child, made) for name, child in children}
    return made[id(module)]


def _move_to_the_model(root: nn.Module) -> None:
    """Lets the state that preparation has added be where the first parameter of the model is; on the meta device
    there is nothing that the schedule could read.
    """
    device = next((parameter.device for parameter in root.parameters()), torch.device("cpu"))
    for module in root.modules():
        if isinstance(module, Float32State | Schedule) and device.type != "meta":
            module.to(device)


class _Builder:
    """Makes the modules that the annotation asks for and lets the graph call them."""

    def __init__(
        self, graph: fx.Graph, root: nn.Module, annotation: Annotation, qconfig: QConfig, is_qat: bool
    ) -> None:
        self.graph, self.root, self.annotation, self.qconfig, self.is_qat = graph, root, annotation, qconfig, is_qat
        self.quantization: Quantization = root.quantization  # type: ignore[assignment]
        self.quantizers: dict[str, TensorQuantizer] = {}
        self.replaced: set[str] = set()  # paths of modules that are quantized layers by now

    def build(self) -> None:
        """Changes graph and root in place."""
        for group in self.annotation.groups:
            self.quantizers[group.name] = self._quantizer(group)
        heads = {chain.tail: chain for chain in self.annotation.chains.values()}
        producers = {node for group in self.annotation.groups for node in group.producers}
        for node in list(self.graph.nodes):
            if node in self.annotation.weights and node not in self.annotation.chains:
                self._stored_weights(node)
            if node in self.annotation.chains:
                self._chain(self.annotation.chains[node])
            elif node in producers and node not in heads:
                self._insert(node, node, None, None, fresh=self._is_fresh(node))
        drop_unread(self.graph)  # the parameters of functional layers

    def _quantizer(self, group: Group) -> TensorQuantizer:
        observer = self._observer(group.spec)
        if group.table is not None:
            owner = self._table_owner(group.table)
            quantizer: TensorQuantizer = TableQuantizer(group.name, group.spec, observer, owner)
        else:
            quantizer = TensorQuantizer(group.name, group.spec, observer, group.fixed, trains=self.is_qat)
        if len(group.producers) > 1 and isinstance(quantizer.observer, MovingAverageObserver):
            quantizer.observer.share(len(group.producers))
        if quantizer.scheme is not None:
            quantizer.scheme.share(len(group.producers))
        self.quantization.tensors.add_module(group.name, quantizer)
        return quantizer

    def _observer(self, spec: TensorSpec) -> Method:
        return spec.training_observer if self.is_qat else spec.observer

    def _target(self, node: fx.Node) -> TensorQuantizer | None:
        group = self.annotation.group_of.get(node)
        return None if group is None else self.quantizers[group.name]

    def _is_fresh(self, node: fx.Node) -> bool:
        computed = node.op.startswith("call") and behaviour_of(node, module_of(node, self.root)) is Behaviour.FIXED
        return computed and len(node.users) == 1

    def _insert(self, node: fx.Node, tail: fx.Node, floor: float | None, ceiling: float | None, fresh: bool) -> None:
        """Puts the quantizer of `tail` behind `node`, and lets all readers of `tail` read it."""
        group = self.annotation.group_of[tail]
        bounds: dict[str, Any] = {
            key: value for key, value in (("floor", floor), ("ceiling", ceiling)) if value is not None
        }
        if fresh:
            bounds["fresh"] = True
        readers = list(tail.users)
        with self.graph.inserting_after(tail):
            quantized = self.graph.call_module(f"{RESERVED}.tensors.{group.name}", (node,), bounds)
        for reader in readers:
            reader.replace_input_with(tail, quantized)
        self.annotation.group_of[quantized] = self.annotation.group_of.pop(tail)
        if node.op.startswith("call") and node not in self.annotation.reasons:
            self.annotation.places[quantized] = self.annotation.places[node]

    def _chain(self, chain: Chain) -> None:
        if chain.head in self.annotation.weights:  # not by its module, which an earlier call may have replaced
            self._layer(chain)
        elif behaviour_of(chain.head, module_of(chain.head, self.root)) is Behaviour.MATMUL:
            self._matmul(chain)
        else:
            self._insert(chain.head, chain.tail, chain.floor, chain.ceiling, fresh=True)
            if chain.clip is not None:
                self.graph.erase_node(chain.clip)

    def _source(self, node: fx.Node) -> TensorQuantizer:
        """The quantizer of a node's value, whether its readers already read the quantizer or not."""
        if node.op == "call_module" and str(node.target).startswith(f"{RESERVED}.tensors."):
            return self.root.get_submodule(str(node.target))  # type: ignore[return-value]
        quantizer = self._target(node)
        assert quantizer is not None, f"{node} feeds a quantized layer and has no quantizer"
        return quantizer

    # ---- layers

    def _layer(self, chain: Chain) -> None:
        head = chain.head
        module = module_of(head, self.root)
        if module is not None and len(head.args) + len(head.kwargs) > 1:
            raise SpecError(
                f"{node_name(head)} is called with more than its input, {head.args[1:]} {dict(head.kwargs)}. A size "
                "of the output must be fixed beforehand: set output_padding in the constructor instead."
            )
        operation = Operation.of_module(module) if module is not None else Operation.of_call(head)
        first = chain.nodes[0]
        source = data_inputs(first, module_of(first, self.root))[0]
        site = Site(
            node_name(head),
            self._source(source),
            self._target(chain.tail),
            chain.floor,
            chain.ceiling,
            self.qconfig.bias.bits,
            NORM_STRATEGIES[self.qconfig.batch_norm](),
            **self._folds(chain),
        )
        layer, path = self._quantized_layer(head, module)
        layer.start(site, operation, self._weight_quantizer(head, layer, operation), operation.channels(layer.weight))
        self._call(chain, path, (source,))

    def _folds(self, chain: Chain) -> dict[str, Any]:
        """What is folded into a layer, as `Folds` takes it."""
        before, norm, affine = (
            None if node is None else module_of(node, self.root) for node in (chain.before, chain.norm, chain.affine)
        )
        numbers = {"factor": affine.factor, "offset": affine.offset} if isinstance(affine, Affine) else {}
        nodes = {"before": chain.before, "norm": chain.norm}
        paths = {name: str(node.target) for name, node in nodes.items() if node is not None}
        return {"before": before, "norm": norm, "norm_paths": paths, **numbers}

    def _quantized_layer(self, head: fx.Node, module: nn.Module | None) -> tuple[QuantizedLayer, str]:
        """The module that the head is to call, and its path: the user's own one as a quantized layer at its first
        call, a reference to the parameters at every other one.
        """
        path = str(head.target)
        if module is not None and path not in self.replaced:
            layer = shell(module, QUANTIZED[_exact_type(module)])
            take_over_hooks(layer)
            self.root.set_submodule(path, layer)
            self.replaced.add(path)
        else:
            layer = QuantizedReference()
            layer.owner = self._owner(head, module)
            path = f"{RESERVED}.layers.{head.name}"
            self.quantization.layers.add_module(head.name, layer)
        return layer, path

    def _owner(self, head: fx.Node, module: nn.Module | None) -> Owner:
        if module is not None:
            return Owner(module, "weight", module, None if module.bias is None else "bias")
        weight, rows, transposed = _stored(argument(head, 1, "weight"))
        bias, bias_rows, _ = _stored(argument(head, 2, "bias"))
        owner, _, name = str(weight.target).rpartition(".")
        bias_owner, _, bias_name = (owner, "", None) if bias is None else str(bias.target).rpartition(".")
        modules = self.root.get_submodule(owner), self.root.get_submodule(bias_owner)
        return Owner(modules[0], name, modules[1], bias_name, rows, bias_rows, transposed)

    def _weight_quantizer(self, head: fx.Node, layer: QuantizedLayer, operation: Operation) -> WeightQuantizer:
        spec: TensorSpec = self.annotation.weights[head]
        weight = layer.weight
        return WeightQuantizer(
            spec,
            self._observer(spec),
            weight.shape[operation.weight_axis],
            operation.weight_axis,
            offset_shape=weight.shape if "compensated_rounding" in self.qconfig.recovery and not self.is_qat else None,
            trains=self.is_qat,
        )

    # ---- weights that are only kept as integers

    def _table_owner(self, node: fx.Node) -> Owner:
        module = module_of(node, self.root)
        if module is not None:
            return Owner(module, "weight", module, None)
        weight, rows, _ = _stored(argument(node, 1, "weight"))
        path, _, name = str(weight.target).rpartition(".")
        owner = self.root.get_submodule(path)
        return Owner(owner, name, owner, None, rows)

    def _stored_weights(self, node: fx.Node) -> None:
        """Lets the node call a layer with quantized weights. A table whose codes are moved stays what it is: the
        quantizer behind its look-ups knows it.
        """
        module, spec = module_of(node, self.root), self.annotation.weights[node]
        is_moved = node in self.annotation.tables
        if module is None:
            layer, arguments = reference(node, self._table_owner(node), is_moved)
            self.quantization.layers.add_module(node.name, layer)
            node.op, node.target = "call_module", f"{RESERVED}.layers.{node.name}"
            node.args, node.kwargs = arguments, {}
        elif is_moved or isinstance(module, StoredWeights):
            return
        else:
            layer = shell(module, STORED[torch_class(module)])
            self.root.set_submodule(str(node.target), layer)
        if isinstance(layer, StoredWeights):
            layer.start(spec, self._observer(spec), self.is_qat)

    def _matmul(self, chain: Chain) -> None:
        head = chain.head
        left, right = data_inputs(head, None)
        site = MatmulSite(
            node_name(head),
            self._source(left),
            self._source(right),
            self._target(chain.tail),
            chain.floor,
            chain.ceiling,
        )
        self.quantization.layers.add_module(head.name, QuantizedMatmul(site))
        self._call(chain, f"{RESERVED}.layers.{head.name}", (left, right))

    def _call(self, chain: Chain, path: str, args: tuple[Any, ...]) -> None:
        """Replaces the nodes of a chain by one call."""
        with self.graph.inserting_after(chain.tail):
            call = self.graph.call_module(path, args)
        chain.tail.replace_all_uses_with(call)
        for node in reversed(chain.nodes):
            self.graph.erase_node(node)
        self.annotation.group_of[call] = self.annotation.group_of[chain.tail]
        self.annotation.places[call] = self.annotation.places[chain.head]


def _stored(node: Any) -> tuple[Any, slice | None, bool]:
    """The attribute that a parameter of a functional layer is, the rows of it if it is not all, and whether it is
    transposed.
    """
    rows, transposed = None, False
    while node is not None and node.op != "get_attr":  # rows are picked, or another reader has a quantizer behind it
        rows = node.args[1] if node.target is operator.getitem else rows
        transposed = transposed or node.target == "t"
        node = node.args[0]
    return node, rows, transposed


def _exact_type(module: nn.Module) -> type[nn.Module]:
    return next(kind for kind in QUANTIZED if isinstance(module, kind))
