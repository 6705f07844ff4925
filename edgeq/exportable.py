"""A network that can leave the house: written to a file, and compared with what it computes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from edgeq.errors import SpecError
from edgeq.graph.convert import ConvertedModule
from edgeq.graph.parts import ConvertedParts
from edgeq.graph.whole import as_one, inputs_of_parts

if TYPE_CHECKING:
    from edgeq.onnx.export import ExportResult
    from edgeq.onnx.verify import Parity


class ExportingModule(nn.Module):
    """A wrapper around a network that can leave the house."""

    module: nn.Module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def integer_network(self) -> ConvertedModule | ConvertedParts:
        """The network of integers that is exported."""
        raise NotImplementedError

    def export(
        self,
        example_inputs: Any,
        filename: str | Path = "model.onnx",
        opset_version: int | None = None,
        format: str = "qdq",  # noqa: A002 - the word that users of exporters know
        *,
        dynamic_batch: bool = False,
        input_names: Sequence[str] | None = None,
        output_names: Sequence[str] | None = None,
        verify: bool = True,
    ) -> ExportResult:
        """Writes an ONNX file and compares it with the network in ONNX Runtime, on `example_inputs`: the only
        argument of the model's forward, a tuple of all of them, or a dict of them by name.

        `format` is "qdq" (float operators between QuantizeLinear and DequantizeLinear, which importers of
        devices read) or "integer" (QLinearConv, QLinearMatMul, MatMulInteger). `opset_version` is 13 to 21, by
        default the backend's. Raises ExportError, and leaves no file, when it cannot be written or checked, and
        CalibrationError when there are no ranges yet.
        """
        from edgeq.onnx.export import as_inputs, export

        network = self.integer_network()
        inputs = as_inputs(example_inputs, network)
        return export(
            as_one(network, inputs) if isinstance(network, ConvertedParts) else network,
            inputs,
            filename,
            opset_version,
            format,
            dynamic_batch,
            input_names,
            output_names,
            verify,
        )

    def verify(self, filename: str | Path, inputs: Any, batch: int | None = 64) -> list[Parity]:
        """Compares a file with the network, integer by integer, in ONNX Runtime: without and with its fusions.
        `batch` is how many inputs go in at a time; None, all at once, for a file of fixed batch size.
        """
        from edgeq.onnx.export import as_inputs
        from edgeq.onnx.verify import compare

        network = self.integer_network()
        inputs = as_inputs(inputs, network)
        return compare(
            as_one(network, inputs) if isinstance(network, ConvertedParts) else network, filename, inputs, batch
        )

    def export_parts(self, example_inputs: Any, folder: str | Path, **options: Any) -> dict[str, ExportResult]:
        """Writes each part of a network whose submodules are quantized as a file of its own, ``<name>.onnx`` in
        `folder`, compared on what it gets when the whole runs on `example_inputs`. `options` as for `export`.

        Raises SpecError for a network that is one part, and what `export` raises.
        """
        from edgeq.onnx.export import as_inputs, export

        network = self.integer_network()
        if not isinstance(network, ConvertedParts):
            raise SpecError("The network is quantized as a whole: export() writes it.")
        inputs = inputs_of_parts(network, as_inputs(example_inputs, network))
        return {
            path: export(part, as_inputs(inputs[path], part), Path(folder) / f"{path}.onnx", **options)
            for path, part in network.parts.items()
        }


class IntegerModule(ExportingModule):
    """A converted network: int8 weights, int32 biases, integers from layer to layer. Inputs and outputs are real."""

    module: ConvertedModule | ConvertedParts

    def __init__(self, module: ConvertedModule | ConvertedParts) -> None:
        super().__init__()
        self.module = module
        self.eval()

    def integer_network(self) -> ConvertedModule | ConvertedParts:
        return self.module

    def convert(self) -> IntegerModule:
        """Itself: it is converted."""
        return self
