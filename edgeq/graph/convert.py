"""From the prepared network to one that computes with integers."""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from edgeq.backends import BackendSpec
from edgeq.errors import CalibrationError
from edgeq.graph.conditions import argument, is_of_shape
from edgeq.graph.constants import fold_constants
from edgeq.graph.growing_tree import RESERVED, GrowingTree, reserved_path
from edgeq.graph.hooks import hooked, tell_of_lost_hooks
from edgeq.graph.inline import Inlined, inlined
from edgeq.graph.kinds import attribute, module_of
from edgeq.graph.left_float import left_in_float, reads_codes
from edgeq.graph.movers import mover
from edgeq.graph.operators import data_inputs, operator_of
from edgeq.graph.prepared import PreparedModule
from edgeq.graph.program import Program
from edgeq.modules.codes import Codes, Dequantize, Quantize
from edgeq.modules.embedding import TableQuantizer
from edgeq.modules.float_layer import FloatLayer
from edgeq.modules.integer import IntegerLayer, IntegerMatmul
from edgeq.modules.layer import QuantizedLayer, Site
from edgeq.modules.matmul import MatmulSite, QuantizedMatmul
from edgeq.modules.pair import PAIRED, IntegerPair
from edgeq.modules.stored import StoredWeights
from edgeq.phase import Phase, set_phase
from edgeq.quantizers.scheme import require_all_uniform
from edgeq.quantizers.tensor import TensorQuantizer
from edgeq.spec import QConfig

Node = Any  # torch.fx.Node: its arguments are typed too widely to be of use


class ConvertedModule(Program):
    """A network of integers. Inputs and outputs are real, as those of the network that it was made from.

    `operations` has an entry for each of its integer tensors, in the order in which they are computed: the name
    of the node of `fx_graph` that gives it, and the operation behind it as edgeq's table calls it ("quantize"
    for an input, "moved" for codes that were only moved). `qconfigs` has the presets of those that have another
    one than `qconfig`.
    """

    qconfig: QConfig
    backend: BackendSpec
    operations: dict[str, str]
    qconfigs: dict[str, QConfig]

    def __init__(self, root: nn.Module, inlined: Inlined, qconfig: QConfig, backend: BackendSpec) -> None:
        super().__init__(root, inlined.graph)
        self.keep(qconfig=qconfig, backend=backend, operations=inlined.operations, qconfigs=inlined.qconfigs)
        self.eval()

    def qconfig_of(self, tensor: str) -> QConfig:
        """The preset that an integer tensor was quantized under."""
        return self.qconfigs.get(tensor, self.qconfig)

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of the nodes that give integer tensors."""
        return tuple(self.operations)

    def train(self, mode: bool = True) -> ConvertedModule:
        """A network of integers has nothing to train: its modules stay in evaluation mode."""
        super().train(False)
        self.training = mode
        return self


@torch.no_grad()
def convert(network: PreparedModule, qconfig: QConfig | None = None) -> ConvertedModule:
    """The integer network of a calibrated or trained one, which stays as it is; nothing is shared. What stays
    floating is float32, as integers become, whatever type the network was trained in. With a `qconfig`, settled
    for the network's backend, what its rules leave in float stays float too.

    Raises CalibrationError when there are no ranges yet, ExportError for a quantizer that integers cannot stand for,
    and SpecError for a `qconfig` that does not fit.
    """
    floats = set() if qconfig is None else left_in_float(network, qconfig)
    mode, observes_always = network.training, network.observes_always
    require_all_uniform(network)
    network.require_calibration()
    network.observes_always = False
    network.change_mode(False)
    try:
        wide = any(parameter.dtype is not torch.float32 for parameter in network.parameters())
        source = copy.deepcopy(network).float() if wide else network
        return _Converter(source, qconfig or network.qconfig, floats).converted()
    finally:
        network.training, network.observes_always = mode, observes_always
        network.apply_mode()


class _Converter:
    """Walks the prepared graph once. A value may exist as codes, as real numbers, or as both; `codes` and
    `reals` hold the nodes of the new graph that stand for it. `floats` are the names of the nodes that are to stay
    float.
    """

    def __init__(self, network: PreparedModule, qconfig: QConfig, floats: set[str]) -> None:
        self.network, self.qconfig, self.floats = network, qconfig, floats
        self.graph = fx.Graph()
        self.tree = GrowingTree()
        self.codes: dict[Node, Node] = {}
        self.reals: dict[Node, Any] = {}
        self.operations: dict[str, str] = {}
        self.clip_on_integers = network.backend.onnx.clip_on_integers

    def converted(self) -> ConvertedModule:
        """The new network."""
        for node in self.network.fx_graph.nodes:
            self._node(node)
        self._drop_unread()
        for name, path in fold_constants(self.graph, self.tree.root, self.tree.keep_folded):
            self.operations.pop(name, None)
            self.tree.take_out(path, self.graph)
        self.graph.lint()
        calls = {str(node.target) for node in self.network.fx_graph.nodes if node.op == "call_module"}
        lost = hooked(self.network) & calls - hooked(self.tree.root)
        tell_of_lost_hooks("The network of integers", lost)
        whole = inlined(self.graph, self.tree.root, self.operations)
        return ConvertedModule(self.tree.root, whole, self.qconfig, self.network.backend)

    def _attribute_path(self, node: Node) -> str:
        """Where an attribute goes; that of a layer, whose own are integers, to a place of its own."""
        owner = self.network.get_submodule(str(node.target).rpartition(".")[0])
        return reserved_path("attributes", node.name) if isinstance(owner, QuantizedLayer) else str(node.target)

    def _drop_unread(self) -> None:
        """Drops what no output depends on, such as the loss head of a training: an exported file has none of it."""
        for node in reversed(self.graph.nodes):
            checks = node.op == "call_function" and node.is_impure()  # an argument, say
            if not node.users and node.op not in ("placeholder", "output") and not checks:
                self.graph.erase_node(node)
                self.operations.pop(node.name, None)

    def _node(self, node: Node) -> None:
        module = module_of(node, self.network)
        if node.op == "output":
            self.graph.output(fx.node.map_arg(node.args[0], self._real))
        elif node.name in self.floats:
            self._left_in_float(node, module)
        elif isinstance(module, TensorQuantizer):
            self._quantizer(node, module)
        elif isinstance(module, QuantizedLayer):
            self._layer(node, module)
        elif isinstance(module, QuantizedMatmul):
            self._matmul(node, module.site)
        elif self._moves_codes(node, module):
            self._mover(node, module)
        elif self._is_pair(node) or self._table_quantizer(node) is not None:
            return  # made where it is quantized
        else:
            self._float(node, module)

    # ---- values

    def _real(self, node: Node) -> Any:
        """The node of the new graph that gives a value as real numbers."""
        if node not in self.reals:
            quantizer = self._quantizer_of(node)
            name = reserved_path("dequantize", node.name)
            self.tree.install(name, Dequantize(quantizer))
            self.reals[node] = self.graph.call_module(name, (self.codes[node],))
        return self.reals[node]

    def _quantizer_of(self, node: Node) -> TensorQuantizer:
        quantizer = self.network.quantizer_of(node.name)
        if quantizer is None:
            raise CalibrationError(f"The tensor {node.name!r} is read as integers, but no range of it was observed.")
        return quantizer

    def _code(self, node: Node) -> Node:
        """The node of the new graph that gives a value as codes."""
        if node not in self.codes:
            name = reserved_path("tensors", node.name.removeprefix(f"{RESERVED}_tensors_"))
            self.tree.install(name, Quantize(self._quantizer_of(node)))
            self._keep_codes(node, self.graph.call_module(name, (self.reals[node],)), "quantize")
        return self.codes[node]

    def _code_or_real(self, node: Node) -> Any:
        return self.codes[node] if node in self.codes else self._real(node)

    def _keep_codes(self, node: Node, made: Node, operation: str) -> None:
        self.codes[node] = made
        if made.op != "get_attr" and not self._gives_several(node):
            self.operations.setdefault(made.name, operation)

    def _gives_several(self, node: Node) -> bool:
        """Whether a value is a tuple: what a split gives, and a slice of that."""
        if node.target is operator.getitem:
            return isinstance(node.args[1], slice) and self._gives_several(node.args[0])
        return operator_of(node, module_of(node, self.network)).name == "split"

    def _moves_codes(self, node: Node, module: nn.Module | None) -> bool:
        """Whether a node only moves values that are there as codes, into one that is wanted as codes."""
        sources = data_inputs(node, module) if node.op.startswith("call") else []
        return self.network.quantizer_of(node.name) is not None and all(source in self.codes for source in sources)

    # ---- nodes

    def _quantizer(self, node: Node, quantizer: TensorQuantizer) -> None:
        source = node.args[0]
        if not quantizer.observed:  # never saw a floating tensor: it passes, as it did before
            self.reals[node] = self._real(source)
            return
        codes = Quantize(quantizer, node.kwargs.get("floor"), node.kwargs.get("ceiling"), self.clip_on_integers)
        path = reserved_path("tensors", node.name.removeprefix(f"{RESERVED}_tensors_"))
        if source.op == "get_attr":
            path = self.tree.constant_path(quantizer.name, str(source.target))
            self.tree.install(path, codes.encode(attribute(self.network, str(source.target)).detach()))
            self._keep_codes(node, self.graph.get_attr(path), "constant")
            return
        row = operator_of(source, module_of(source, self.network))
        operation = row.name if source.op.startswith("call") else "quantize"
        if isinstance(quantizer, TableQuantizer):
            self._look_up(node, quantizer)
            return
        if self._is_pair(source):
            left, right = source.args
            target = Codes(quantizer, node.kwargs.get("floor"), node.kwargs.get("ceiling"), self.clip_on_integers)
            sources = Codes(self._quantizer_of(left)), Codes(self._quantizer_of(right))
            self.tree.install(path, IntegerPair(operation, *sources, target))
            self._keep_codes(node, self.graph.call_module(path, (self.codes[left], self.codes[right])), operation)
            return
        self.tree.install(path, codes)
        self._keep_codes(node, self.graph.call_module(path, (self._real(source),)), operation)

    def _table_quantizer(self, node: Node) -> TableQuantizer | None:
        """The quantizer behind a look-up that moves the codes of its table."""
        readers = [module_of(user, self.network) for user in node.users if user.name not in self.floats]
        return readers[0] if readers and isinstance(readers[0], TableQuantizer) else None

    def _look_up(self, node: Node, quantizer: TableQuantizer) -> None:
        """The table as codes, and its rows picked from them."""
        path = self.tree.constant_path(quantizer.name, "")
        self.tree.install(path, Codes(quantizer).encode(quantizer.table.detach()))
        picked = self._real(argument(node.args[0], 0, "input")), self.graph.get_attr(path)
        made = self.graph.create_node("call_function", functional.embedding, picked, name=quantizer.name)
        self._keep_codes(node, made, "moved")

    def _is_pair(self, node: Node) -> bool:
        """Whether a node combines two tensors of codes, and nothing but a quantizer reads what comes of it."""
        if not node.op.startswith("call") or operator_of(node, module_of(node, self.network)).name not in PAIRED:
            return False
        readers = [module_of(user, self.network) for user in node.users if user.name not in self.floats]
        quantized = len(node.users) == len(readers) == 1 and _quantizes(readers[0])
        return quantized and not node.kwargs and len(node.args) == 2 and all(arg in self.codes for arg in node.args)

    def _layer(self, node: Node, layer: QuantizedLayer) -> None:
        site: Site = layer.site
        weight, bias = layer.folded(layer.weight, layer.bias)
        target = self._target(site)
        made = IntegerLayer(
            layer.operation,
            layer.weight_quantizer.codes(weight),
            layer.weight_quantizer.scale,
            None if bias is None else layer.bias_codes(bias),
            Codes(site.source),
            target,
            site.floor,
            site.ceiling,
        )
        path = str(node.target)
        self.tree.install(path, made)
        call = self.graph.call_module(path, (self._code(node.args[0]),))
        self._keep(node, call, layer.operation.function, target is not None)

    def _matmul(self, node: Node, site: MatmulSite) -> None:
        target = self._target(site)
        self.tree.install(
            str(node.target), IntegerMatmul(Codes(site.left), Codes(site.right), target, site.floor, site.ceiling)
        )
        made = self.graph.call_module(str(node.target), tuple(self._code(factor) for factor in node.args))
        self._keep(node, made, "matmul", target is not None)

    def _keep(self, node: Node, made: Node, operation: str, is_codes: bool) -> None:
        if is_codes:
            self._keep_codes(node, made, operation)
        else:
            self.reals[node] = made

    def _target(self, site: Site | MatmulSite) -> Codes | None:
        if site.target is None:
            return None
        return Codes(site.target, site.floor, site.ceiling, self.clip_on_integers)

    def _mover(self, node: Node, module: nn.Module | None) -> None:
        source = node.args[0]
        row = operator_of(node, module)
        if row.name == "same":  # a dropout in evaluation, a change of type that codes do not take part in
            self.codes[node] = self._code(source)
            return
        args, kwargs = (fx.node.map_arg(value, self._code_or_real) for value in (node.args, node.kwargs))
        if node.target is operator.getitem and self._gives_several(source):
            made = self.graph.call_function(operator.getitem, args)
        else:
            path = reserved_path("movers", node.name)
            self.tree.install(path, mover(node, module, Codes(self._quantizer_of(node))))
            if node.op == "call_function" and row.name == "pad":
                args, kwargs = args[:2], {**kwargs, **dict(zip(("mode", "value"), args[2:], strict=False))}
            made = self.graph.call_module(path, args, kwargs)
        self._keep_codes(node, made, "moved")

    def _left_in_float(self, node: Node, module: nn.Module | None) -> None:
        """An operation that was prepared for integers, on real numbers after all. What it gives is quantized where
        anybody computes with the integers.
        """
        if isinstance(module, TensorQuantizer):
            made, bounds = self._real(node.args[0]), (node.kwargs.get("floor"), node.kwargs.get("ceiling"))
            self._keep_real(node, made, bounds)
        elif isinstance(module, QuantizedLayer):
            weight, bias = module.folded(module.weight, module.bias)
            bias = None if bias is None else bias - module.bias_shift  # which calibration gave for integers
            self.tree.install(str(node.target), FloatLayer(module.operation, weight, bias))
            made = self.graph.call_module(str(node.target), (self._real(node.args[0]),))
            self._keep_real(node, made, (module.site.floor, module.site.ceiling))
        elif isinstance(module, QuantizedMatmul):
            made = self.graph.call_function(torch.matmul, tuple(self._real(factor) for factor in node.args))
            self._keep_real(node, made, (module.site.floor, module.site.ceiling))
        else:
            self._float(node, module)
        if any(reads_codes(user, self.network, self.floats) for user in node.users):
            self._code(node)
            del self.reals[node]

    def _keep_real(self, node: Node, made: Node, bounds: tuple[float | None, float | None]) -> None:
        """Keeps real numbers, clipped to the bounds of the activation that was absorbed."""
        self.reals[node] = made if bounds == (None, None) else self.graph.call_function(torch.clamp, (made, *bounds))

    def _float(self, node: Node, module: nn.Module | None) -> None:
        if isinstance(module, nn.Identity | nn.modules.dropout._DropoutNd):  # which do nothing in evaluation
            self.reals[node] = self._real(node.args[0])
            return
        if module is not None:
            self.tree.install(str(node.target), self._float_module(node, module))
        if node.op == "get_attr":
            readers = [module_of(user, self.network) for user in node.users]
            if all(_quantizes(reader) for reader in readers) and not self.floats & {user.name for user in node.users}:
                return  # it is kept as codes
            path = self._attribute_path(node)
            self.tree.install(path, attribute(self.network, str(node.target)).detach().clone())
            self.reals[node] = self.graph.get_attr(path)
            return
        of_shape = is_of_shape(node, operator_of(node, module).name)
        self.reals[node] = self.graph.node_copy(node, self._code_or_real if of_shape else self._real)

    def _float_module(self, node: Node, module: nn.Module) -> nn.Module:
        """What computes in float: with weights from integers, where it is prepared for them."""
        if isinstance(module, PreparedModule):
            return convert(module)
        if isinstance(module, StoredWeights) and node.name not in self.floats:
            return module.converted()
        copied = copy.deepcopy(module)
        set_phase(copied, Phase.FLOAT)
        return copied


def _quantizes(module: nn.Module | None) -> bool:
    """Whether a module makes codes of what it is given."""
    return isinstance(module, TensorQuantizer) and module.observed
