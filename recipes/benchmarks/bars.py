"""What edgeq promises, so that each figure stands beside its bar."""

from __future__ import annotations

from dataclasses import dataclass

from edgeq import QConfig
from edgeq.spec import ScaleKind


@dataclass(frozen=True)
class Bar:
    """A limit that a figure keeps: an upper one, or a lower one."""

    limit: float
    upper: bool = True
    unit: str = ""

    def met(self, value: float) -> bool:
        """Whether `value` keeps it."""
        return value <= self.limit if self.upper else value >= self.limit

    def __str__(self) -> str:
        return f"{'<=' if self.upper else '>='} {self.limit:g}{self.unit}"


# Ratios to the float network's time. They were set on torchvision's resnet18 and mobilenet_v2.
TRAINING_STEP = Bar(1.15)
CALIBRATION_PASS = Bar(1.10)
WHOLE_CALIBRATION = Bar(2.0)  # prepare, calibrate and convert, to a float pass over the same 256 images
SIMULATED = Bar(1.10)
CONVERTED = {"resnet18": Bar(0.15), "mobilenet_v2": Bar(0.20)}  # on CPUs with VNNI
CONVERTED_BATCH = 16

# Ratios to torch.ao's time.
PREPARE_TRAINING = Bar(0.20, unit=" of torch.ao")
PREPARE_CALIBRATION = Bar(0.50, unit=" of torch.ao")


def accuracy_bars(qconfig: QConfig) -> dict[str, Bar]:
    """The bars of a preset, by the column of the table. They were set on CIFAR-10's ResNet-20, without training;
    on another network they are a yardstick. Two bits promise nothing without a recovery.
    """
    if qconfig.activation.bits < 8:
        return {"change": Bar(-4.0, False)} if qconfig.weight.bits >= 4 else {}
    if qconfig.weight.bits < 8:
        return {"change": Bar(-1.0, False)}
    if qconfig.activation.scale is ScaleKind.POWER_OF_TWO:
        return {"agreement %": Bar(97.5, False, " %"), "SQNR dB": Bar(25.0, False, " dB")}
    return {"agreement %": Bar(99.0, False, " %"), "SQNR dB": Bar(31.0, False, " dB")}
