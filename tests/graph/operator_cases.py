"""A call of every entry of the table of operators, on the output h of a layer; the test that every entry has one
is in test_operators.py. A call takes the network, which holds parameters, and h: (2, 8, 6, 6) unless said otherwise.
"""

# ruff: noqa: E501 - a table

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from edgeq.graph.put import put
from edgeq.modules.stubs import DeQuantStub

fx.wrap("len")  # recorded only where they are wrapped
fx.wrap("put")

Call = Callable[[Any, Tensor], Any]


class Network(nn.Module):
    """A convolution of `dimensions`, then the call; parameters for the functional forms."""

    def __init__(self, call: nn.Module | Call, dimensions: int = 2) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1](3, 8, 3, padding=1)
        self.operation = call if isinstance(call, nn.Module) else None
        self.call = call
        self.weights = nn.ParameterList([torch.randn(8, 8, *(3,) * n) / 8 for n in range(4)])
        self.bias = nn.Parameter(torch.randn(8))
        self.slope = nn.Parameter(torch.rand(8))
        self.register_buffer("mean", torch.randn(8))
        self.register_buffer("var", torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Any:
        h = self.conv(x)
        return self.call(h) if self.operation is not None else self.call(self, h)


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, add_bias_kv=True)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        return self.attention(h, h, h)


class AnyNorm(nn.modules.batchnorm._BatchNorm):
    """Of inputs with any number of dimensions."""

    def _check_input_dim(self, x: Tensor) -> None:
        pass


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.gru, self.lstm = nn.RNNCell(6, 4), nn.GRUCell(6, 4), nn.LSTMCell(6, 4)

    def forward(self, h: Tensor) -> list[Any]:
        return [self.rnn(h[:, 0]), self.gru(h[:, 1]), self.lstm(h[:, 2])]


class Lookup(nn.Module):
    """Looks up rows by channel, and adds them to h."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table = table

    def forward(self, h: Tensor) -> Tensor:
        return h + self.table(h.argmax(1)[:, 0]).unsqueeze(1).unsqueeze(1)


def shape(dimensions: int) -> tuple[int, ...]:
    return (2, 3, *(6,) * dimensions)


def both(h: Tensor) -> Tensor:
    """Another tensor of the shape of h, with a range of its own."""
    return torch.flip(h, [1]) * 0.5


def put_number(m: Any, h: Tensor) -> Tensor:
    h[:, 0] = 0.5
    return h


def put_tensor(m: Any, h: Tensor) -> Tensor:
    h[:, 2:4] *= 3
    return h


# Modules by the dimensions of h.
MODULES: dict[int, list[nn.Module]] = {
    1: [nn.Conv1d(8, 4, 3), nn.ConvTranspose1d(8, 4, 3), nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(3),
        nn.InstanceNorm1d(8), nn.MaxPool1d(2), nn.AdaptiveMaxPool1d(3), nn.ZeroPad1d(1), nn.ConstantPad1d(1, 0.0),
        nn.ReflectionPad1d(2), nn.ReplicationPad1d(2), nn.CircularPad1d(2), nn.Upsample(scale_factor=2),
        nn.Dropout1d(), nn.RNN(6, 4), nn.GRU(6, 4), nn.LSTM(6, 4), SelfAttention(), Cells(),
        nn.Sequential(nn.Tanh(), nn.BatchNorm1d(8))],
    2: [nn.Conv2d(8, 4, 3), nn.ConvTranspose2d(8, 4, 3, 2), nn.Linear(6, 4), nn.AvgPool2d(2), nn.AvgPool2d(3, padding=1),
        nn.AdaptiveAvgPool2d(3), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.LeakyReLU(), nn.ELU(),
        nn.CELU(), nn.SELU(), nn.Softplus(), nn.PReLU(), nn.PReLU(8), nn.LayerNorm(6), nn.GroupNorm(2, 8),
        nn.InstanceNorm2d(8, affine=True), nn.Sigmoid(), nn.Hardsigmoid(), nn.Softmax(1), nn.Softmax2d(), nn.Tanh(),
        nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.4, 0.7), nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.AdaptiveMaxPool2d(3), nn.ZeroPad2d(1), nn.ConstantPad2d(1, 0.0), nn.ReflectionPad2d(2), nn.ReplicationPad2d(2),
        nn.CircularPad2d(2), nn.UpsamplingNearest2d(scale_factor=2), nn.Upsample(scale_factor=2, mode="nearest-exact"),
        nn.Flatten(), nn.Unflatten(1, (2, 4)), nn.PixelShuffle(2), nn.PixelUnshuffle(2), nn.ChannelShuffle(2),
        nn.Identity(), DeQuantStub(), nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), nn.FeatureAlphaDropout(),
        nn.LogSoftmax(1), nn.UpsamplingBilinear2d(scale_factor=2), nn.modules.linear.NonDynamicallyQuantizableLinear(6, 4),
        nn.Sequential(nn.Tanh(), nn.BatchNorm2d(8)), nn.Sequential(nn.Tanh(), nn.SyncBatchNorm(8)),
        nn.Sequential(nn.Tanh(), AnyNorm(8)),
        Lookup(nn.Embedding(8, 6)), Lookup(nn.EmbeddingBag(8, 6))],
    3: [nn.Conv3d(8, 4, 3), nn.ConvTranspose3d(8, 4, 3), nn.AvgPool3d(2), nn.AdaptiveAvgPool3d(3), nn.InstanceNorm3d(8),
        nn.MaxPool3d(2), nn.AdaptiveMaxPool3d(3), nn.ZeroPad3d(1), nn.ConstantPad3d(1, 0.0), nn.ReflectionPad3d(2),
        nn.ReplicationPad3d(2), nn.CircularPad3d(2), nn.Dropout3d(), nn.Sequential(nn.Tanh(), nn.BatchNorm3d(8))],
}  # fmt: skip

# Calls by the name of the row, then the dimensions of h.
CALLS: dict[tuple[str, int], list[Call]] = {
    ("conv", 1): [lambda m, h: F.conv1d(h, m.weights[1], m.bias), lambda m, h: torch.conv1d(h, m.weights[1])],
    ("conv", 2): [lambda m, h: F.conv2d(h, m.weights[2], m.bias, 2, 1), lambda m, h: torch.conv2d(h, m.weights[2])],
    ("conv", 3): [lambda m, h: F.conv3d(h, m.weights[3], padding=1), lambda m, h: torch.conv3d(h, m.weights[3])],
    ("conv_transpose", 1): [lambda m, h: F.conv_transpose1d(h, m.weights[1], m.bias, 2)],
    ("conv_transpose", 2): [lambda m, h: F.conv_transpose2d(h, m.weights[2], m.bias, 2, 1, 1)],
    ("conv_transpose", 3): [lambda m, h: F.conv_transpose3d(h, m.weights[3])],
    ("linear", 2): [lambda m, h: F.linear(h.transpose(1, 3), m.weights[0], m.bias)],
    ("matmul", 2): [
        lambda m, h: torch.matmul(h, both(h)), lambda m, h: h @ both(h), lambda m, h: h.matmul(both(h)),
        lambda m, h: torch.bmm(h.flatten(2), both(h).flatten(2).mT), lambda m, h: h.flatten(2).bmm(mat2=h.flatten(2).mT),
    ],
    ("add", 2): [lambda m, h: h + both(h), lambda m, h: torch.add(h, 1), lambda m, h: h.add(both(h)), lambda m, h: h.__radd__(2)],
    ("sub", 2): [
        lambda m, h: h - both(h), lambda m, h: 1 - h, lambda m, h: torch.sub(h, both(h)), lambda m, h: torch.subtract(h, 1),
        lambda m, h: torch.rsub(h, both(h)), lambda m, h: h.sub(1), lambda m, h: h.subtract(1),
    ],
    ("mul", 2): [
        lambda m, h: h * both(h), lambda m, h: 3 * h, lambda m, h: torch.mul(h, 0.3), lambda m, h: torch.multiply(h, both(h)),
        lambda m, h: h.mul(both(h)), lambda m, h: h.multiply(-2),
    ],
    ("div", 2): [
        lambda m, h: h / 3, lambda m, h: h / (both(h) * both(h) + 1), lambda m, h: torch.div(h, 7), lambda m, h: torch.divide(h, 7),
        lambda m, h: torch.true_divide(h, 7), lambda m, h: h.div(7), lambda m, h: h.divide(7), lambda m, h: h.true_divide(7),
    ],
    ("neg", 2): [lambda m, h: -h, lambda m, h: torch.neg(h), lambda m, h: h.neg()],
    ("put", 2): [put_number, put_tensor, lambda m, h: put(h, 0, both(h)[1])],
    ("mean", 2): [lambda m, h: h.mean((2, 3)), lambda m, h: torch.mean(h, 1, keepdim=True), lambda m, h: h.mean()],
    ("sum", 2): [lambda m, h: h.sum(1), lambda m, h: torch.sum(h, (2, 3))],
    ("avg_pool", 1): [lambda m, h: F.avg_pool1d(h, 2), lambda m, h: F.adaptive_avg_pool1d(h, 4)],
    ("avg_pool", 2): [lambda m, h: F.avg_pool2d(h, 3, 2, 1), lambda m, h: F.adaptive_avg_pool2d(h, 1)],
    ("avg_pool", 3): [lambda m, h: F.avg_pool3d(h, 2), lambda m, h: F.adaptive_avg_pool3d(h, 4)],
    ("gelu", 2): [lambda m, h: F.gelu(h)],
    ("silu", 2): [lambda m, h: F.silu(h)],
    ("mish", 2): [lambda m, h: F.mish(h)],
    ("hardswish", 2): [lambda m, h: F.hardswish(h)],
    ("leaky_relu", 2): [lambda m, h: F.leaky_relu(h, 0.2)],
    ("elu", 2): [lambda m, h: F.elu(h), lambda m, h: F.celu(h), lambda m, h: F.selu(h)],
    ("softplus", 2): [lambda m, h: F.softplus(h)],
    ("prelu", 2): [lambda m, h: F.prelu(h, m.slope), lambda m, h: torch.prelu(h, m.slope)],
    ("batch_norm", 2): [lambda m, h: F.batch_norm(torch.tanh(h), m.mean, m.var, m.slope, m.bias)],
    ("layer_norm", 2): [lambda m, h: F.layer_norm(h, (6,))],
    ("group_norm", 2): [lambda m, h: F.group_norm(h, 4, m.slope, m.bias)],
    ("instance_norm", 2): [lambda m, h: F.instance_norm(h)],
    ("sigmoid", 2): [lambda m, h: torch.sigmoid(h), lambda m, h: F.sigmoid(h), lambda m, h: h.sigmoid()],
    ("hardsigmoid", 2): [lambda m, h: F.hardsigmoid(h)],
    ("softmax", 2): [lambda m, h: torch.softmax(h, 1), lambda m, h: F.softmax(h, dim=-1), lambda m, h: h.softmax(1)],
    ("tanh", 2): [lambda m, h: torch.tanh(h), lambda m, h: F.tanh(h), lambda m, h: h.tanh()],
    ("relu", 2): [lambda m, h: torch.relu(h), lambda m, h: F.relu(h), lambda m, h: h.relu()],
    ("relu6", 2): [lambda m, h: F.relu6(h)],
    ("hardtanh", 2): [lambda m, h: F.hardtanh(h), lambda m, h: F.hardtanh(h, min_val=-0.2, max_val=0.6)],
    ("clamp", 2): [
        lambda m, h: torch.clamp(h, -0.3, 0.4), lambda m, h: torch.clip(h, max=0.4), lambda m, h: h.clamp(min=0.1),
        lambda m, h: h.clip(-0.3, 0.4),
    ],
    ("clamp_min", 2): [lambda m, h: torch.clamp_min(h, -0.1), lambda m, h: h.clamp_min(0)],
    ("clamp_max", 2): [lambda m, h: torch.clamp_max(h, 0.3), lambda m, h: h.clamp_max(0.3)],
    ("cat", 2): [
        lambda m, h: torch.cat([h, both(h)], 1), lambda m, h: torch.concat((h, h), dim=2), lambda m, h: torch.concatenate([both(h), h]),
        lambda m, h: torch.stack((h, both(h)), 1),
    ],
    ("maximum", 2): [
        lambda m, h: torch.maximum(h, both(h)), lambda m, h: torch.minimum(h, both(h)), lambda m, h: h.maximum(both(h)),
        lambda m, h: h.minimum(both(h)),
    ],
    ("max", 2): [
        lambda m, h: torch.max(h, both(h)), lambda m, h: torch.min(h, both(h)), lambda m, h: h.max(both(h)), lambda m, h: h.min(both(h)),
    ],
    ("where", 2): [lambda m, h: torch.where(h > 0, h, both(h))],
    ("extreme", 2): [lambda m, h: torch.amax(h, (2, 3)), lambda m, h: torch.amin(h, 1), lambda m, h: h.amax(1), lambda m, h: h.amin(1)],
    ("max_pool", 1): [lambda m, h: F.max_pool1d(h, 2), lambda m, h: F.adaptive_max_pool1d(h, 4), lambda m, h: torch.max_pool1d(h, 3, 1, 1)],
    ("max_pool", 2): [lambda m, h: F.max_pool2d(h, 3, 2, 1), lambda m, h: F.adaptive_max_pool2d(h, 1), lambda m, h: torch.max_pool2d(h, 2)],
    ("max_pool", 3): [lambda m, h: F.max_pool3d(h, 2), lambda m, h: F.adaptive_max_pool3d(h, 4), lambda m, h: torch.max_pool3d(h, 2)],
    ("pad", 2): [
        lambda m, h: F.pad(h, (1, 2, 0, 1)), lambda m, h: F.pad(h, (1, 1), "constant", 0.0), lambda m, h: F.pad(h, (-1, 2), value=0),
        lambda m, h: F.pad(h, (1, 2, 0, 1), mode="reflect"), lambda m, h: F.pad(h, (1, 2, 0, 1), "replicate"),
        lambda m, h: F.pad(h, (1, 2, 0, 1), "circular"),
    ],
    ("interpolate", 2): [lambda m, h: F.interpolate(h, scale_factor=2), lambda m, h: F.interpolate(h, (9, 5), mode="nearest-exact")],
    ("shape", 2): [
        lambda m, h: torch.flatten(h, 1), lambda m, h: torch.reshape(h, (2, -1)), lambda m, h: torch.permute(h, (0, 2, 3, 1)),
        lambda m, h: torch.transpose(h, 1, 2), lambda m, h: torch.swapaxes(h, 1, 3), lambda m, h: torch.swapdims(h, 1, 3),
        lambda m, h: torch.movedim(h, 1, 3), lambda m, h: torch.squeeze(h[:1]), lambda m, h: torch.unsqueeze(h, 1),
        lambda m, h: torch.flip(h, [2]), lambda m, h: torch.roll(h, 2, 1), lambda m, h: torch.tile(h, (1, 2, 1, 1)),
        lambda m, h: torch.narrow(h, 1, 2, 3), lambda m, h: torch.select(h, 1, 2),
        lambda m, h: torch.index_select(h, 1, torch.tensor([3, 0, 0])), lambda m, h: torch.gather(h, 1, torch.argsort(h, 1)),
        lambda m, h: torch.repeat_interleave(h, 2, 1), lambda m, h: torch.broadcast_to(h[:, :, :1], (2, 8, 6, 6)),
        lambda m, h: F.pixel_shuffle(h, 2), lambda m, h: F.pixel_unshuffle(h, 3), lambda m, h: torch.t(h[0, 0]), lambda m, h: torch.clone(h),
        lambda m, h: h.flatten(2), lambda m, h: h.unflatten(1, (2, 4)), lambda m, h: h.reshape(2, 4, -1), lambda m, h: h.reshape_as(both(h)),
        lambda m, h: h.view(h.size(0), -1), lambda m, h: h.view_as(both(h)), lambda m, h: h.permute(0, 3, 2, 1),
        lambda m, h: h.transpose(0, 1), lambda m, h: h.swapaxes(1, 2), lambda m, h: h.swapdims(1, 2), lambda m, h: h.movedim(1, -1),
        lambda m, h: h[:1].squeeze(0), lambda m, h: h.unsqueeze(-1), lambda m, h: h.flip(1), lambda m, h: h.roll(3, 2),
        lambda m, h: h.tile((2, 1, 1, 1)), lambda m, h: h.narrow(2, 1, 3), lambda m, h: h.select(1, 0),
        lambda m, h: h.index_select(2, torch.tensor([1, 1])), lambda m, h: h.gather(2, h.argmax(2, keepdim=True)),
        lambda m, h: h.repeat(1, 2, 1, 1), lambda m, h: h.repeat_interleave(3, 3), lambda m, h: h[:, :1].expand(-1, 4, -1, -1),
        lambda m, h: h[:1].expand_as(h), lambda m, h: h[:1].broadcast_to((3, 8, 6, 6)), lambda m, h: h.mT.contiguous(),
        lambda m, h: h.clone(), lambda m, h: h[0, 0].t(),
    ],
    ("split", 2): [
        lambda m, h: torch.chunk(h, 3, 1)[1], lambda m, h: torch.split(h, [2, 6], 1)[1], lambda m, h: torch.unbind(h, 1)[7],
        lambda m, h: torch.tensor_split(h, 3, 1)[2], lambda m, h: h.chunk(2, 1)[0], lambda m, h: h.split(3, 1), lambda m, h: h.unbind(2)[1],
        lambda m, h: h.tensor_split((2, 3), 1)[1],
    ],
    ("getitem", 2): [
        lambda m, h: h[0], lambda m, h: h[..., ::2, None], lambda m, h: h[:, [2, 0, 2]], lambda m, h: h[:, -1],
        lambda m, h: h[torch.tensor([1, 0])],
    ],
    ("same", 2): [
        lambda m, h: F.dropout(h, training=m.training), lambda m, h: F.dropout2d(h, training=m.training), lambda m, h: h.float(),
        lambda m, h: h.to(torch.float32), lambda m, h: h.detach(), lambda m, h: h.type_as(h), lambda m, h: h.cpu(),
    ],
    ("same", 3): [lambda m, h: F.dropout3d(h, training=m.training)],
    ("log_softmax", 2): [lambda m, h: torch.log_softmax(h, 1), lambda m, h: F.log_softmax(h, 1), lambda m, h: h.log_softmax(1)],
    ("masked_fill", 2): [lambda m, h: h.masked_fill(h > 0, 0.5), lambda m, h: torch.masked_fill(h, h < 0, 0)],
    ("embedding", 2): [
        lambda m, h: F.embedding(h.argmax(1), m.weights[0]) + 1,
    ],
    ("embedding_bag", 2): [lambda m, h: F.embedding_bag(h.argmax(1)[0], m.weights[0]) + 1],
    ("attribute", 2): [lambda m, h: h.mT, lambda m, h: h[0, 0].T, lambda m, h: h.data],
    ("size", 2): [
        lambda m, h: (h, len(h.shape), torch.numel(h), h.size(1), h.dim(), h.numel(), h.ndimension(), h.stride(0), h.is_contiguous()),
        lambda m, h: (h, h.is_floating_point(), h.get_device(), h.argmax().item(), h.argmax().tolist()),
    ],
    ("integer", 2): [
        lambda m, h: (torch.argmax(h, 1), torch.argmin(h), torch.argsort(h, 1), h.argmax(1), h.argmin(1), h.argsort(1)),
        lambda m, h: (h, torch.arange(h.size(0)), torch.nonzero(torch.argmax(h, 1)), h.argmax(1).nonzero()),
        lambda m, h: (h.long(), h.int(), h.bool()),
    ],
    ("comparison", 2): [
        lambda m, h: (h == 0, h != 0, h < 0, h <= 0, h > 0, h >= 0),
        lambda m, h: (torch.eq(h, 0), torch.ne(h, 0), torch.lt(h, 0), torch.le(h, 0), torch.gt(h, 0), torch.ge(h, 0)),
        lambda m, h: (h.eq(0), h.ne(0), h.lt(0), h.le(0), h.gt(0), h.ge(0), h.isnan(), torch.isnan(h)),
        lambda m, h: ((h > 0).logical_and(h < 1), (h > 0).logical_or(h < 1), (h > 0).logical_not()),
        lambda m, h: (torch.logical_and(h > 0, h < 1), torch.logical_or(h > 0, h < 1), torch.logical_not(h > 0)),
        lambda m, h: ((h > 0) & (h < 1), (h > 0) | (h < 1), (h > 0).any(), (h > 0).all()),
        lambda m, h: (h.argmax(1) // 2, h.argmax(1) % 2),
    ],
}  # fmt: skip


def cases() -> Iterator[tuple[str, str, int, nn.Module | Call]]:
    """An id, the name of the row (of a module: none), the dimensions of h, and the call."""
    for dimensions, modules in MODULES.items():
        for number, module in enumerate(modules):
            yield f"{type(module).__name__}-{number}", "", dimensions, module
    for (row, dimensions), calls in CALLS.items():
        for number, call in enumerate(calls):
            yield f"{row}-{dimensions}d-{number}", row, dimensions, call
