"""The plain quantizer: its numbers are those of the range that was observed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeq.errors import SpecError
from edgeq.quantizers.registry import QUANTIZERS
from edgeq.quantizers.scheme import Scheme

if TYPE_CHECKING:
    from edgeq.spec import TensorSpec


@QUANTIZERS.register("fixed")
class Fixed(Scheme):
    """No scheme at all: ranges follow the data while observers are live, and stand still afterwards. Nothing is
    learned, and nothing is made of it; see `scheme_of`.
    """

    for_weights = for_activations = True

    def __init__(self, spec: TensorSpec, channels: int | None = None) -> None:
        super().__init__(spec, channels)

    @classmethod
    def check(cls, spec: TensorSpec) -> None:
        """Any spec will do."""


def scheme_of(spec: TensorSpec, trains: bool, channels: int | None = None) -> Scheme | None:
    """The scheme that a spec names; None for the plain quantizer, and for those that learn where nothing `trains`: a
    calibration gives them the range that they would start from.

    Raises SpecError for one that rounds another weight than the one that it is given, which a calibration cannot make
    up for.
    """
    scheme = QUANTIZERS[spec.quantizer.name]
    if scheme is Fixed:
        return None
    if not trains and scheme.changes_weights:
        raise SpecError(
            f"The quantizer {spec.quantizer.name!r} makes other weights of those that there are, so that a network has "
            "to be trained with it: use QATFxModule, or prepare_qat_fx, or a preset with another quantizer."
        )
    if not trains and scheme.is_uniform:
        return None
    return scheme(spec, channels, **dict(spec.quantizer.options))
