"""Recurrent layers: LSTM, GRU and RNN with quantized weights.

The loop over time lies inside of one call of PyTorch's, which computes in float. Its weights are what their codes
stand for; its input, its initial state and what it gives are quantized around it. A cell that a model calls step by
step is written out instead, and all of it runs in integers (`edgeq.graph.cells`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from edgeq.errors import SpecError
from edgeq.modules.float32_state import Float32State
from edgeq.modules.qdq import dequantize, exporting
from edgeq.modules.stored import StoredWeights
from edgeq.quantizers import kernel

State = Tensor | tuple[Tensor, Tensor]
KERNELS: dict[str, Callable[..., Any]] = {
    "LSTM": torch.lstm,
    "GRU": torch.gru,
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
}


@dataclass(frozen=True)
class Recurrence:
    """What a recurrent layer does with its weights, whichever numbers those are: PyTorch's kernel of that `mode`."""

    mode: str
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int

    @classmethod
    def of_module(cls, module: Any) -> Recurrence:
        """That of an LSTM, a GRU or an RNN."""
        return cls(**{name: getattr(module, name) for name in cls.__dataclass_fields__})

    def __call__(
        self, x: Tensor, state: State | None, weights: Sequence[Tensor], training: bool
    ) -> tuple[Tensor, State]:
        """Output and last state, shaped as `nn.LSTM`, `nn.GRU` and `nn.RNN` give them; zeros are the first state
        without one. `weights` are in the order of the module's.
        """
        batched, batch_axis = x.dim() == 3, 0 if self.batch_first else 1
        x = (x if batched else x.unsqueeze(batch_axis)).contiguous()  # its order in memory would decide how sums round
        if state is None:
            state = self._zeros(x, x.shape[batch_axis])
        elif not batched:
            state = pytree.tree_map(lambda part: part.unsqueeze(1), state)
        options = self.num_layers, self.dropout, training, self.bidirectional, self.batch_first
        with _without_advice(x):
            output, *last = KERNELS[self.mode](x, state, list(weights), self.bias, *options)
        if not batched:
            output, last = output.squeeze(batch_axis), [part.squeeze(1) for part in last]
        return output, (last[0], last[1]) if self.mode == "LSTM" else last[0]

    @property
    def directions(self) -> int:
        """One, or two."""
        return 2 if self.bidirectional else 1

    def _zeros(self, x: Tensor, batch: int) -> State:
        sizes = (self.proj_size or self.hidden_size, self.hidden_size)
        h, c = (x.new_zeros(self.num_layers * self.directions, batch, size) for size in sizes)
        return (h, c) if self.mode == "LSTM" else h


@contextmanager
def _without_advice(x: Tensor) -> Iterator[None]:
    """On a GPU, without the advice to lay the weights out in one piece beforehand: they are new at each call, and cuDNN
    copies them together as it would be done here.
    """
    if not x.is_cuda:
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
        yield


class QuantizedRecurrent(StoredWeights):
    """What the quantized forms of `nn.LSTM`, `nn.GRU` and `nn.RNN` have in common."""

    _flat_weights_names: list[str]

    def stored_names(self) -> list[str]:
        """The weights of all layers and directions; biases stay float."""
        return [name for name in self._flat_weights_names if name.startswith("weight")]

    def forward(self, input: Any, hx: Any = None) -> tuple[Tensor, State]:  # noqa: A002 - PyTorch's name
        """Output and last state, as the float layer gives them.

        Raises SpecError for a packed sequence, whose steps have no tensor that could be quantized.
        """
        if isinstance(input, PackedSequence):
            raise SpecError(
                f"{type(self).__name__} was given a PackedSequence. Give it the padded tensor, or keep the layer in "
                "float with a rule of its name or type and `quantize = false`."
            )
        if self.is_float:
            return super().forward(input, hx)
        self._adapt()
        if self.training or exporting() or not torch.is_grad_enabled():
            return self._run(input, hx)
        with torch.no_grad():
            exact = self._run(input, hx)
        return pytree.tree_map(kernel.with_gradient_of, self._run(input, hx), exact)

    def _run(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        stored = self.stored_names()
        weights = [self.stored(name) if name in stored else getattr(self, name) for name in self._flat_weights_names]
        return Recurrence.of_module(self)(x, state, weights, self.training)

    def converted(self) -> nn.Module:
        """The layer with weights of integers."""
        weights = {name: self.codes(name) for name in self.stored_names()}
        biases = {name: getattr(self, name) for name in self._flat_weights_names if name not in weights}
        return IntegerRecurrent(Recurrence.of_module(self), self._flat_weights_names, weights, biases)


class QuantizedLSTM(QuantizedRecurrent, nn.LSTM):  # type: ignore[misc]
    """`nn.LSTM` with quantized weights."""


class QuantizedGRU(QuantizedRecurrent, nn.GRU):  # type: ignore[misc]
    """`nn.GRU` with quantized weights."""


class QuantizedRNN(QuantizedRecurrent, nn.RNN):  # type: ignore[misc]
    """`nn.RNN` with quantized weights."""


class IntegerRecurrent(Float32State):
    """A recurrent layer whose weights are integers. Buffers: under the names of the float layer, the codes of the
    weights, int8, and the biases, float32; and for each weight its scale, shape () or (channels,).
    """

    def __init__(
        self,
        recurrence: Recurrence,
        names: Sequence[str],
        weights: dict[str, tuple[Tensor, Tensor]],
        biases: dict[str, Tensor],
    ) -> None:
        super().__init__()
        self.recurrence, self.names = recurrence, tuple(names)
        for name, (codes, scale) in weights.items():
            self.register_buffer(name, codes)
            self.register_buffer(f"{name}_scale", scale)
        for name, bias in biases.items():
            self.register_buffer(name, bias.detach().to(torch.float32).clone())

    def forward(self, input: Tensor, hx: State | None = None) -> tuple[Tensor, State]:  # noqa: A002 - as above
        """Output and last state, real numbers."""
        return self.recurrence(input, hx, [self.number(name) for name in self.names], training=False)

    def number(self, name: str) -> Tensor:
        """A weight or a bias as real numbers."""
        value, scale = getattr(self, name), getattr(self, f"{name}_scale", None)
        if scale is None:
            return value
        if exporting():
            return dequantize(value, scale, torch.zeros_like(scale, dtype=torch.int8))
        return value.to(torch.float32) * (scale.unsqueeze(1) if scale.dim() else scale)

    def extra_repr(self) -> str:
        return f"{self.recurrence.mode.lower()}, {self.recurrence.input_size} -> {self.recurrence.hidden_size}"
