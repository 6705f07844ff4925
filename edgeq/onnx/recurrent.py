"""How a recurrent layer with integer weights is written: LSTM, GRU or RNN of ONNX, one node for each layer, its
weights behind DequantizeLinear.

PyTorch's own exporters would slice and join the gates, which ONNX has in another order, of dequantized weights; one
of them unrolls an RNN, and leaves out projections without a word. Here the codes themselves are put into order.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from edgeq.errors import ExportError
from edgeq.graph.program import Program
from edgeq.modules.qdq import dequantize
from edgeq.modules.recurrent import IntegerRecurrent, Recurrence, State

SINCE = 14  # opset of these operators; the ones before differ in nothing that is used here
GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN_TANH": (0,), "RNN_RELU": (0,)}  # PyTorch's, in ONNX's order
OPERATORS = {"LSTM": "LSTM", "GRU": "GRU", "RNN_TANH": "RNN", "RNN_RELU": "RNN"}

_library = torch.library.Library("edgeq", "FRAGMENT")
_library.define(
    "recurrent(Tensor x, Tensor w, Tensor r, Tensor? b, Tensor? h, Tensor? c, "
    "str mode, int hidden_size, int directions) -> (Tensor, Tensor, Tensor)"
)


def _shapes(x: Tensor, hidden_size: int, directions: int) -> list[tuple[Any, ...]]:
    """Of output, last hidden state and last cell state, as ONNX has them."""
    steps, batch = x.shape[0], x.shape[1]
    state = (directions, batch, hidden_size)
    return [(steps, directions, batch, hidden_size), state, state]


def _recurrent(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    h: Tensor | None,
    c: Tensor | None,
    mode: str,
    hidden_size: int,
    directions: int,
) -> tuple[Tensor, ...]:
    """Stands for the operator while a network is traced, where only shapes count."""
    return tuple(x.new_zeros(shape) for shape in _shapes(x, hidden_size, directions))


_library.impl("recurrent", _recurrent, "CompositeExplicitAutograd")


def write_recurrent(program: Program) -> None:
    """Puts a layer that an exporter writes as it should be in the place of each recurrent one, in a program that is
    there to be exported.

    Raises ExportError for an LSTM with projections, which ONNX has not.
    """
    for path, layer in list(program.named_modules()):
        if isinstance(layer, IntegerRecurrent):
            program.tree.set_submodule(path, WrittenRecurrent(path, layer))


class WrittenRecurrent(nn.Module):
    """A recurrent layer as ONNX has it. Buffers: under the names of the float layer, the codes of a weight, int8, shape
    (1, gates * hidden, inputs), their scale and zero point; biases, (directions, 2 * gates * hidden), of each layer.
    """

    def __init__(self, path: str, layer: IntegerRecurrent) -> None:
        super().__init__()
        self.recurrence = layer.recurrence
        if self.recurrence.proj_size:
            raise ExportError(f"The LSTM {path!r} has proj_size={self.recurrence.proj_size}, which ONNX cannot say.")
        order = self._gate_order()
        for name in layer.names:
            if name.startswith("weight"):
                codes, scale = getattr(layer, name), getattr(layer, f"{name}_scale")
                scale = scale[order] if scale.dim() else scale
                self.register_buffer(name, codes[order].unsqueeze(0))
                self.register_buffer(f"{name}_scale", scale)
                self.register_buffer(f"{name}_zero_point", torch.zeros_like(scale, dtype=torch.int8))
        for number in range(self.recurrence.num_layers if self.recurrence.bias else 0):
            ends = [[f"bias_ih_{suffix}", f"bias_hh_{suffix}"] for suffix in self._suffixes(number)]
            biases = [torch.cat([getattr(layer, name)[order] for name in names]) for names in ends]
            self.register_buffer(f"bias_l{number}", torch.stack(biases))

    def _gate_order(self) -> Tensor:
        kind = self.recurrence
        gates = torch.arange(len(GATES[kind.mode]) * kind.hidden_size).reshape(-1, kind.hidden_size)
        return gates[list(GATES[kind.mode])].flatten()

    def _suffixes(self, number: int) -> list[str]:
        return [f"l{number}", f"l{number}_reverse"][: self.recurrence.directions]

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Output and last state, as `nn.LSTM`, `nn.GRU` and `nn.RNN` give them."""
        kind, batched = self.recurrence, x.dim() == 3
        given: list[Tensor | None] = [*state, None][:2] if isinstance(state, tuple) else [state, None]
        if not batched:
            x, given = x.unsqueeze(1), [None if part is None else part.unsqueeze(1) for part in given]
        elif kind.batch_first:
            x = x.transpose(0, 1)
        last: list[tuple[Tensor, Tensor]] = []
        for number in range(kind.num_layers):
            own = slice(number * kind.directions, (number + 1) * kind.directions)
            h, c = (None if part is None else part[own] for part in given)
            bias = getattr(self, f"bias_l{number}", None)
            output, *states = _emit(x, self._weight("ih", number), self._weight("hh", number), bias, h, c, kind)
            last.append((states[0], states[1]))
            x = output.transpose(1, 2).flatten(2)
        hidden, cell = (torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*last, strict=True))
        if not batched:
            x, hidden, cell = x.squeeze(1), hidden.squeeze(1), cell.squeeze(1)
        elif kind.batch_first:
            x = x.transpose(0, 1)
        return x, (hidden, cell) if kind.mode == "LSTM" else hidden

    def _weight(self, which: str, number: int) -> Tensor:
        """W or R of one layer, real numbers (directions, gates * hidden, inputs or hidden)."""
        names = [f"weight_{which}_{suffix}" for suffix in self._suffixes(number)]
        parts = [
            dequantize(getattr(self, name), getattr(self, f"{name}_scale"), getattr(self, f"{name}_zero_point"), axis=1)
            for name in names
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _emit(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, h: Tensor | None, c: Tensor | None, kind: Recurrence
) -> tuple[Tensor, ...]:
    """One node, in whichever exporter is reading."""
    if torch.jit.is_tracing():
        _register()
        return torch.ops.edgeq.recurrent(x, w, r, b, h, c, kind.mode, kind.hidden_size, kind.directions)
    shapes = _shapes(x, kind.hidden_size, kind.directions)
    count = 3 if kind.mode == "LSTM" else 2
    inputs = [x, w, r, b, None, h, c][: 7 if kind.mode == "LSTM" else 6]
    made = torch.onnx.ops.symbolic_multi_out(
        OPERATORS[kind.mode],
        inputs,
        _attributes(kind.mode, kind.hidden_size, kind.directions),
        dtypes=[torch.float32] * count,
        shapes=shapes[:count],
        version=SINCE,
    )
    return (*made, made[-1])[:3]


def _attributes(mode: str, hidden_size: int, directions: int) -> dict[str, Any]:
    attributes: dict[str, Any] = {"hidden_size": hidden_size}
    if directions == 2:
        attributes["direction"] = "bidirectional"
    if mode == "GRU":
        attributes["linear_before_reset"] = 1  # PyTorch's form
    if mode == "RNN_RELU":
        attributes["activations"] = ["Relu"] * directions
    return attributes


@lru_cache(maxsize=1)
def _register() -> None:
    from torch.onnx import symbolic_helper, symbolic_opset9

    @symbolic_helper.parse_args("v", "v", "v", "v", "v", "v", "s", "i", "i")
    def recurrent(
        g: Any, x: Any, w: Any, r: Any, b: Any, h: Any, c: Any, mode: str, hidden_size: int, directions: int
    ) -> Any:
        absent = symbolic_opset9.unused(g)
        given = [x, w, r, b, absent, h, c][: 7 if mode == "LSTM" else 6]
        inputs = [absent if symbolic_helper._is_none(value) else value for value in given]
        suffixes = {int: "_i", str: "_s", list: "_s"}
        attributes = _attributes(mode, hidden_size, directions)
        named = {f"{name}{suffixes[type(value)]}": value for name, value in attributes.items()}
        made = g.op(OPERATORS[mode], *inputs, outputs=3 if mode == "LSTM" else 2, **named)
        return (*made, made[-1])[:3]

    torch.onnx.register_custom_op_symbolic("edgeq::recurrent", recurrent, 13)
