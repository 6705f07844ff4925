"""The peer: torch.ao's FX quantization, which PyTorch deprecated, where this torch still has it and it runs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn

ENGINES = ("x86", "qnnpack")  # by preference


class TorchAO:
    """torch.ao's entry points with the default mapping of the CPU's int8 engine.

    Raises ImportError where torch has no torch.ao quantization, RuntimeError where it has no int8 engine.
    """

    def __init__(self, example: Tensor) -> None:
        with quiet():
            from torch.ao import quantization
            from torch.ao.quantization import quantize_fx
        engine = next((name for name in ENGINES if name in torch.backends.quantized.supported_engines), None)
        if engine is None:
            raise RuntimeError("this build of torch has no int8 engine")
        torch.backends.quantized.engine = engine
        self.engine, self.example = engine, example
        self._quantization, self._fx = quantization, quantize_fx

    def prepare(self, model: nn.Module) -> fx.GraphModule:
        """For calibration: observers in a float network."""
        with quiet():
            mapping = self._quantization.get_default_qconfig_mapping(self.engine)
            return self._fx.prepare_fx(model.eval(), mapping, (self.example,))

    def prepare_training(self, model: nn.Module) -> fx.GraphModule:
        """For training: fake quantizers that observe."""
        with quiet():
            mapping = self._quantization.get_default_qat_qconfig_mapping(self.engine)
            return self._fx.prepare_qat_fx(model.train(), mapping, (self.example,))

    def freeze(self, model: nn.Module) -> nn.Module:
        """Stops observers and batch-norm statistics."""
        model.apply(self._quantization.disable_observer)
        return model.apply(torch.ao.nn.intrinsic.qat.freeze_bn_stats)

    def convert(self, model: fx.GraphModule) -> fx.GraphModule:
        """The int8 network of a prepared one."""
        with quiet():
            return self._fx.convert_fx(model)


def find_torch_ao(model: nn.Module, example: Tensor) -> tuple[TorchAO | None, str]:
    """The peer, if it takes `model` through calibration, training and int8 inference, and what there is to say
    of it: its engine, or why it is left out.
    """
    try:
        peer = TorchAO(example)
        prepared = peer.prepare(copy.deepcopy(model))
        with torch.no_grad():
            prepared(example)
            peer.convert(prepared)(example)
        peer.freeze(peer.prepare_training(copy.deepcopy(model)))(example)
    except Exception as error:  # whatever it is, the reader shall see edgeq's figures, and this reason
        reason = str(error).partition("\n")[0]
        return None, f"torch.ao is left out: {type(error).__name__}: {reason}"
    return peer, f"torch.ao runs with the default qconfig mapping and the kernels of its engine {peer.engine!r}."


@contextmanager
def quiet() -> Iterator[None]:
    """Without torch.ao's warnings, of which it gives one an observer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
