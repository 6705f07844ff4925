"""The functions that users of PyTorch's FX quantization know: prepare_fx, prepare_qat_fx, convert_fx.

prepared = prepare_fx(model.eval(), QConfigMapping().set_global("WC8_AT8"))
calibrate(prepared)                    # runs data through it, in whatever mode
converted = convert_fx(prepared)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from torch import nn

from edgeq.backends import settle
from edgeq.errors import SpecError
from edgeq.exportable import IntegerModule
from edgeq.graph.chosen import Submodules
from edgeq.graph.convert import convert
from edgeq.graph.passes import Wanted
from edgeq.graph.prepared import PreparedModule
from edgeq.presets import Preset, load_preset
from edgeq.qconfig_mapping import QConfigMapping
from edgeq.wrapper import Backend, PTCFxModule, QATFxModule, QuantizedWrapper

T = TypeVar("T", bound=nn.Module)


def prepare_fx(
    model: nn.Module,
    qconfig_mapping: QConfigMapping | Preset | None = None,
    example_inputs: Any = None,
    backend: Backend = "qnnpack",
    bias_calibration_factor: float = 1.0,
    untraced: Iterable[str | type[nn.Module]] = (),
    preserved_attributes: Iterable[str] = (),
    rewrites: Wanted | None = None,
    submodules: Submodules | None = None,
    standalone: Submodules | None = None,
) -> PTCFxModule:
    """A copy of `model` that observes whatever runs through it, in either mode, until `convert_fx`. Attributes of
    `model` that are named in `preserved_attributes` are there on it, and on what it is converted to, as well;
    methods too, which then work on the quantized network. The other arguments are those of `PTCFxModule`.
    """
    prepared = PTCFxModule(
        model,
        _preset(qconfig_mapping),
        backend,
        example_inputs,
        bias_calibration_factor=bias_calibration_factor,
        untraced=untraced,
        rewrites=rewrites,
        submodules=submodules,
        standalone=standalone,
    )
    prepared.module.observe_in_any_mode()
    return _preserve(prepared, model, preserved_attributes)


def prepare_qat_fx(
    model: nn.Module,
    qconfig_mapping: QConfigMapping | Preset | None = None,
    example_inputs: Any = None,
    backend: Backend = "qnnpack",
    untraced: Iterable[str | type[nn.Module]] = (),
    preserved_attributes: Iterable[str] = (),
    rewrites: Wanted | None = None,
    submodules: Submodules | None = None,
    standalone: Submodules | None = None,
) -> QATFxModule:
    """The network to train; ranges and batch norms adapt until `freeze()` is called on it. `preserved_attributes`
    as in `prepare_fx`.
    """
    options: dict[str, Any] = {"untraced": untraced, "rewrites": rewrites}
    options |= {"submodules": submodules, "standalone": standalone}
    prepared = QATFxModule(model, _preset(qconfig_mapping), backend, example_inputs, total_epochs=1, **options)
    prepared.unfreeze()
    return _preserve(prepared, model, preserved_attributes)


def convert_fx(prepared: QuantizedWrapper, qconfig_mapping: QConfigMapping | Preset | None = None) -> IntegerModule:
    """The network of integers that a prepared one has become. `qconfig_mapping` is that of the preparation with
    None in more places: what it leaves in float stays float, with its batch norm and activation.

    Raises CalibrationError when there are no ranges yet, and SpecError for a mapping that would quantize anything
    in another way than it was prepared for.
    """
    if not isinstance(prepared, QuantizedWrapper):
        raise SpecError(f"convert_fx takes what prepare_fx or prepare_qat_fx returned, got {type(prepared).__name__}.")
    if qconfig_mapping is None:
        converted = prepared.convert()
    elif isinstance(prepared.module, PreparedModule) and not prepared.module.standalone():
        qconfig = settle(load_preset(_preset(qconfig_mapping)), prepared.module.backend)
        converted = IntegerModule(convert(prepared.module, qconfig))
    else:
        raise SpecError(
            "qconfig_mapping is for a network that is quantized as a whole; of this one, submodules are quantized by "
            "themselves. Leave in float what is to stay so when it is prepared."
        )
    return _preserve(converted, prepared, getattr(prepared, "preserved_attributes", ()))


class Method:
    """A method of a user's model on a quantized network; a bound one could not be pickled with what it is bound to."""

    def __init__(self, function: Callable[..., Any], network: nn.Module) -> None:
        self.function, self.network = function, network

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.network, *args, **kwargs)


def _preserve(wrapper: T, source: nn.Module, names: Iterable[str]) -> T:
    """`wrapper` with the attributes of `source` that are named, and their names."""
    preserved = tuple(names)
    for name in preserved:
        if not hasattr(source, name):
            raise SpecError(f"preserved_attributes names {name!r}, which {type(source).__name__} does not have.")
        if hasattr(wrapper, name):
            raise SpecError(f"preserved_attributes names {name!r}, which is edgeq's own on a quantized network.")
        value = getattr(source, name)
        if inspect.ismethod(value) and value.__self__ is source:
            value = Method(value.__func__, wrapper)
        elif isinstance(value, Method):
            value = Method(value.function, wrapper)
        setattr(wrapper, name, value)
    wrapper.preserved_attributes = preserved  # type: ignore[assignment]
    return wrapper


def _preset(mapping: QConfigMapping | Preset | None) -> Preset | None:
    return mapping.qconfig() if isinstance(mapping, QConfigMapping) else mapping
