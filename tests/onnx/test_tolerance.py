"""How far a runtime may differ: nowhere with power-of-two scales, a step at ties else, and by name where it is its
own way.
"""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq import load_preset
from edgeq.graph.operators import TABLE
from edgeq.onnx.tolerance import EXACT, OWN_WAY, ROUNDED, Tolerance, cause_of, tolerance_of
from edgeq.onnx.verify import TensorParity
from tests.test_presets import CALIBRATED

COMPUTED = ("conv2d", "linear", "add", "matmul", "mul")


@pytest.mark.parametrize("preset", CALIBRATED)
def test_power_of_two_presets_allow_nothing_and_free_ones_a_step_in_two_of_ten_thousand(preset):
    qconfig = load_preset(preset)
    for operation in COMPUTED:
        assert tolerance_of(operation, qconfig) == (EXACT if "P2" in preset else Tolerance(1, 0.0002))
    for operation in ("moved", "quantize"):
        assert tolerance_of(operation, qconfig) == EXACT


@pytest.mark.parametrize(
    "change",
    [{"edges": load_preset("WC8_AT8")}, {"rules": [{"type": "Linear", "weight": {"scale": "free"}}]}],
)
def test_one_free_scale_anywhere_is_enough_for_ties(change):
    base = load_preset("WC8SYMP2_AT8SYMP2")
    if "rules" in change:
        mixed = load_preset({"inherits": "WC8SYMP2_AT8SYMP2", **change})
    else:
        mixed = dataclasses.replace(base, **change)
    assert tolerance_of("conv2d", base) == EXACT
    assert tolerance_of("conv2d", mixed) == ROUNDED


def test_what_a_runtime_computes_in_its_own_way_is_named_and_never_more_than_it_says():
    qconfig = load_preset("WT8SYMP2_AT8SYMP2")
    known = {row.name for row in TABLE} | {"unknown"}
    assert set(OWN_WAY) <= known
    for operation, (tolerance, reason) in OWN_WAY.items():
        assert tolerance_of(operation, qconfig) == tolerance
        assert cause_of(operation, "fused") == cause_of(operation, "unfused") == reason
        assert tolerance.steps == (3 if operation == "tanh" else 1)
        assert tolerance.share <= {"softmax": 0.02, "group_norm": 0.005, "instance_norm": 0.005}.get(operation, 0.004)


def test_a_difference_without_a_way_of_its_own_is_put_down_to_ties():
    assert cause_of("conv2d", "fused") == "ties: a fused kernel multiplies by one factor where the file scales twice"
    assert cause_of("add", "unfused") == "ties: float sums of dequantized numbers round where integers do not"


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**7))
def test_small_tensors_may_have_a_few_ties_more_than_their_share(elements):
    allowed = ROUNDED.allowed(elements)
    expected = 0.0002 * elements
    assert expected + 1 <= allowed <= expected + 1 + 3 * np.sqrt(expected) + 1e-9
    assert EXACT.allowed(elements) == 0


def parity(tolerance: Tolerance, elements: int, unequal: int, step: int) -> TensorParity:
    check = TensorParity("a", "conv2d", tolerance)
    ours = np.zeros(elements, np.int8)
    theirs = ours.copy()
    theirs[:unequal] = step
    check.add(ours, theirs, ours)
    return check


@pytest.mark.parametrize(
    ("tolerance", "unequal", "step", "passes"),
    [
        (EXACT, 0, 1, True),
        (EXACT, 1, 1, False),
        (ROUNDED, 7, 1, True),  # 2 expected of 10,000, and 3 * sqrt(2) + 1 by chance
        (ROUNDED, 8, 1, False),
        (ROUNDED, 1, 2, False),
        (ROUNDED, 1, -1, True),
        (ROUNDED, 1, -2, False),
        (Tolerance(3, 0.002), 1, 3, True),
    ],
)
def test_a_tensor_passes_within_both_the_steps_and_the_share(tolerance, unequal, step, passes):
    check = parity(tolerance, 10_000, unequal, step)
    assert check.passed is passes
    assert (check.elements, check.unequal, check.local_unequal) == (10_000, unequal, unequal)
    assert check.greatest == check.local_greatest == (abs(step) if unequal else 0)


def test_only_the_local_difference_decides_and_batches_add_up():
    check = TensorParity("a", "conv2d", EXACT)
    for _ in range(3):
        check.add(np.int8([1, 2, 3]), np.int8([1, 2, 127]), np.int8([1, 2, 127]))
    assert (check.elements, check.unequal, check.greatest) == (9, 3, 124)
    assert (check.local_unequal, check.local_greatest) == (0, 0)
    assert check.passed


def test_the_ends_of_the_types_do_not_wrap():
    check = TensorParity("a", "conv2d", EXACT)
    check.add(np.int8([-128]), np.int8([127]), np.int8([-128]))
    check.add(np.uint8([0]), np.uint8([255]), np.uint8([0]))
    assert check.greatest == 255
