"""One step of a recurrent network, written out in linear layers and gates: all of it runs in integers.

What a cell computes with are the user's own parameters, each product with the previous state by itself, as PyTorch
does it: the reset gate of a GRU is applied behind the hidden linear layer. Gates have known ranges; sums, products
and states have ranges of their own, at every call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from edgeq.graph.decompose import decomposes

Value = Any  # a proxy of a tensor, or None


def zero_state(x: Tensor, features: int) -> Tensor:
    """The state before the first step, zeros (batch, features), for an input x (batch, inputs) or (inputs,)."""
    return x.new_zeros(*x.shape[:-1], features)


fx.wrap("zero_state")


def _projected(module: nn.RNNCellBase, x: Value, state: Value) -> tuple[Value, Value]:
    """Input and previous state, each in its linear layer."""
    of_input = functional.linear(x, module.weight_ih, module.bias_ih)
    return of_input, functional.linear(state, module.weight_hh, module.bias_hh)


@decomposes(nn.RNNCell)
def rnn_cell(module: nn.RNNCell, input: Value, hx: Value = None) -> Value:  # noqa: A002 - PyTorch's name
    """``h' = tanh(W x + b + U h + c)``, or with ReLU."""
    state = zero_state(input, module.hidden_size) if hx is None else hx
    of_input, of_state = _projected(module, input, state)
    activation = torch.tanh if module.nonlinearity == "tanh" else torch.relu
    return activation(of_input + of_state)


@decomposes(nn.GRUCell)
def gru_cell(module: nn.GRUCell, input: Value, hx: Value = None) -> Value:  # noqa: A002 - PyTorch's name
    """Reset gate r, update gate z, new state n, and ``h' = n + z * (h - n)``."""
    state = zero_state(input, module.hidden_size) if hx is None else hx
    of_input, of_state = (x.split(module.hidden_size, -1) for x in _projected(module, input, state))
    reset, update = (torch.sigmoid(of_input[gate] + of_state[gate]) for gate in (0, 1))
    new = torch.tanh(of_input[2] + reset * of_state[2])
    return new + update * (state - new)


@decomposes(nn.LSTMCell)
def lstm_cell(module: nn.LSTMCell, input: Value, hx: Value = None) -> tuple[Value, Value]:  # noqa: A002 - as above
    """Gates i, f, o and new values g, ``c' = f * c + i * g`` and ``h' = o * tanh(c')``."""
    state, memory = (zero_state(input, module.hidden_size),) * 2 if hx is None else hx
    of_input, of_state = _projected(module, input, state)
    i, f, g, o = (of_input + of_state).split(module.hidden_size, -1)
    memory = torch.sigmoid(f) * memory + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(memory), memory
