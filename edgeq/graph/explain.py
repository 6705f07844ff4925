"""A prepared network as a table that a person, or a golden file, can read."""

from __future__ import annotations

from torch import nn

from edgeq.graph.prepared import PreparedModule
from edgeq.modules.embedding import TableQuantizer
from edgeq.modules.folding import Folds
from edgeq.modules.layer import QuantizedLayer
from edgeq.modules.layers import QuantizedReference
from edgeq.modules.matmul import QuantizedMatmul
from edgeq.modules.stored import StoredWeights
from edgeq.quantizers.tensor import TensorQuantizer
from edgeq.spec import TensorSpec


def explain(network: PreparedModule) -> str:
    """One line for each node of the graph: its operation, and how its value is quantized; and one for each rewrite
    that the graph went through before. Then the same for each submodule that is quantized by itself.
    """
    inside = ((path, part) for path, part in network.named_modules() if path and isinstance(part, PreparedModule))
    return "\n\n".join([_table(network), *(explain_part(path, part) for path, part in inside)])


def explain_part(path: str, part: PreparedModule) -> str:
    """The table of a part of a network, under its path and class."""
    return f"{path} ({type(part.face).__name__})\n{_table(part)}"


def _table(network: PreparedModule) -> str:
    rows = [("node", "weight", "folded", "value")]
    for node in network.fx_graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        group = network.groups.get(node.name)
        value = "float" if group is None else f"{describe(network.quantization.tensors[group])} [{group}]"  # type: ignore[arg-type]
        reason = network.reasons.get(node.name)
        rows.append((_name(node.name, module), _weight(module), _folded(module), value if reason is None else reason))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    table = "\n".join("  ".join([*(row[i].ljust(widths[i]) for i in range(3)), row[3]]).rstrip() for row in rows)
    return f"{table}\n\nrewrites\n{network.changes}" if network.changes.each else table


def _name(node: str, module: nn.Module | None) -> str:
    if isinstance(module, TensorQuantizer):
        return f"quantize {module.name}"
    return module.site.name if isinstance(module, QuantizedLayer | QuantizedMatmul) else node


def _weight(module: nn.Module | None) -> str:
    if isinstance(module, StoredWeights):
        return describe_spec(module.quantizer_of(module.stored_names()[0]).spec)
    if not isinstance(module, QuantizedLayer):
        return ""
    is_tied = isinstance(module, QuantizedReference) and isinstance(module.owner.module, QuantizedLayer)
    return describe_spec(module.weight_quantizer.spec) + (", tied" if is_tied else "")


def _folded(module: nn.Module | None) -> str:
    site = getattr(module, "site", None)
    if site is None:
        return ""
    parts = _neighbours(site) if isinstance(site, Folds) else []
    if site.floor is not None or site.ceiling is not None:
        ends = ("" if end is None else f"{end:g}" for end in (site.floor, site.ceiling))
        parts.append(f"clip {'..'.join(ends)}")
    return ", ".join(parts)


def _neighbours(folds: Folds) -> list[str]:
    parts = ["norm before"] if folds.before is not None else []
    parts += ["norm"] if folds.norm is not None else []
    numbers = (("*", folds.factor, 1.0), ("+", folds.offset, 0.0))
    return parts + [f"{sign} {number:g}" for sign, number, neutral in numbers if number != neutral]


def describe(quantizer: TensorQuantizer) -> str:
    """The spec of an activation's quantizer in a few words."""
    words = describe_spec(quantizer.spec)
    if isinstance(quantizer, TableQuantizer):
        return f"{words}, of its table"
    return words if quantizer.fixed is None else f"{words}, fixed {quantizer.fixed[0]:g}..{quantizer.fixed[1]:g}"


def describe_spec(spec: TensorSpec) -> str:
    """A spec in a few words: "8 bits symmetric channel power_of_two"."""
    kind = "symmetric" if spec.symmetric else "affine"
    return f"{spec.bits - spec.reduce_range} bits {kind} {spec.granularity.value} {spec.scale.value}"
