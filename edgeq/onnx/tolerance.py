"""How far an operation of a runtime may differ from edgeq's, and why it does where it is known."""

from __future__ import annotations

from dataclasses import dataclass

from edgeq.spec import QConfig, ScaleKind


@dataclass(frozen=True)
class Tolerance:
    """At most `steps` steps, in at most this `share` of the elements."""

    steps: int
    share: float

    def allowed(self, elements: int) -> float:
        """How many of `elements` may differ. Ties come at random, so a small tensor may have one or two more
        than the share says: three standard deviations and one.
        """
        expected = self.share * elements
        return expected + 3 * expected**0.5 + 1 if self.share else 0.0


EXACT = Tolerance(0, 0.0)
OTHERWISE = Tolerance(1, 1.0)  # a backend's own rounding, where the file can only say half to even
ROUNDED = Tolerance(1, 0.0002)  # ties that fall the other way in another order of float operations

# What comes out may differ by this share of its greatest number, if float operations follow the last integers.
OUTPUT_ERROR = 1e-4

# Operations that a runtime computes in its own way, in float or by a table, whatever the scales are.
OWN_WAY: dict[str, tuple[Tolerance, str]] = {
    "softmax": (Tolerance(1, 0.02), "the runtime's softmax is its own: a table of exponentials when it is fused"),
    "layer_norm": (Tolerance(1, 0.002), "the sums of a layer norm are made in another order"),
    "group_norm": (Tolerance(1, 0.005), "the runtime takes mean and variance of a group in one pass"),
    "instance_norm": (Tolerance(1, 0.005), "the runtime takes mean and variance of a channel in one pass"),
    "batch_norm": (Tolerance(1, 0.002), "a batch norm by itself is computed in float"),
    "gelu": (Tolerance(1, 0.002), "the error function of the runtime is another approximation"),
    "silu": (Tolerance(1, 0.002), "the exponential of the runtime is another approximation"),
    "mish": (Tolerance(1, 0.002), "the exponential of the runtime is another approximation"),
    "elu": (Tolerance(1, 0.002), "the exponential of the runtime is another approximation"),
    "softplus": (Tolerance(1, 0.002), "the exponential of the runtime is another approximation"),
    "sigmoid": (Tolerance(1, 0.002), "the exponential of the runtime is another approximation"),
    "tanh": (Tolerance(3, 0.002), "the runtime's tanh is a rational approximation"),
    "mean": (Tolerance(1, 0.004), "the sum of a mean is made in another order"),
    "sum": (Tolerance(1, 0.004), "the terms of a sum are added in another order"),
    "avg_pool": (Tolerance(1, 0.004), "the sum of an average pool is made in another order"),
    "interpolate": (Tolerance(1, 0.004), "an interpolation weighs its neighbours in another order"),
    "recurrent": (Tolerance(1, 0.0005), "the sums of each step, and its exponentials, are the runtime's own"),
    "embedding_bag": (Tolerance(1, 0.004), "the rows of a bag are added in another order"),
    "function": (Tolerance(1, 0.002), "the function of the runtime is another approximation"),
    "power": (Tolerance(1, 0.002), "the power of the runtime is another approximation"),
    "logsigmoid": (Tolerance(1, 0.002), "the exponential of the runtime is another approximation"),
    "shrink": (Tolerance(1, 0.002), "the runtime's tanh is a rational approximation"),
    "rms_norm": (Tolerance(1, 0.002), "the sums of an RMS norm are made in another order"),
    "local_norm": (Tolerance(1, 0.002), "the sums and the power of a local norm are the runtime's own"),
    "reduction": (Tolerance(1, 0.004), "the terms of a reduction are taken in another order"),
    "scatter_sum": (Tolerance(1, 0.004), "the terms of a sum are added in another order"),
    "distance": (Tolerance(1, 0.004), "the terms of a distance are added in another order"),
    "similarity": (Tolerance(1, 0.004), "the terms of a similarity are added in another order"),
    "power_pool": (Tolerance(1, 0.004), "the sum of a pool is made in another order"),
    "fold": (Tolerance(1, 0.004), "the patches of a fold are added in another order"),
    "grid_sample": (Tolerance(1, 0.004), "an interpolation weighs its neighbours in another order"),
    "unknown": (Tolerance(1, 0.004), "an operation outside of edgeq's table, computed in float"),
}


def tolerance_of(operation: str, qconfig: QConfig) -> Tolerance:
    """The tolerance of an operation, named as in the table of operators, under a preset. With power-of-two
    scales everything that is not computed in a way of the runtime's own must be equal.
    """
    if operation in OWN_WAY:
        return OWN_WAY[operation][0]
    specs = [
        qconfig.weight,
        qconfig.activation,
        *(spec for rule in qconfig.rules for spec in (rule.weight, rule.activation) if spec),
    ]
    if qconfig.edges is not None:
        specs += [qconfig.edges.weight, qconfig.edges.activation]
    exact = operation in ("moved", "quantize") or all(spec.scale is ScaleKind.POWER_OF_TWO for spec in specs)
    return EXACT if exact else ROUNDED


def cause_of(operation: str, runtime: str) -> str:
    """The known reason for a difference in an operation."""
    if operation in OWN_WAY:
        return OWN_WAY[operation][1]
    if runtime == "unfused":
        return "ties: float sums of dequantized numbers round where integers do not"
    return "ties: a fused kernel multiplies by one factor where the file scales twice"
