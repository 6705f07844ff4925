"""What property tests draw: numbers of every kind that float32 has, and specs of every kind; and exact rounding."""

from fractions import Fraction

import torch
from hypothesis import strategies as st

from edgeq.arithmetic import PowerOfTwoRule, Rounding, Sign
from edgeq.spec import ScaleKind, TensorSpec

SUBNORMAL, TINY, HUGE = 2.0**-149, 2.0**-126, 3.4028234663852886e38
EDGES = [0.0, -0.0, *(sign * size for sign in (1, -1) for size in (SUBNORMAL, TINY, 0.5, 1.5, 2.5, HUGE))]

roundings = st.sampled_from(list(Rounding))
bit_widths = st.sampled_from([2, 3, 4, 7, 8, 16])
halves = st.integers(-(2**17), 2**17).map(lambda n: n / 2)
numbers = st.one_of(st.floats(width=32, allow_nan=False, allow_infinity=False), halves, st.sampled_from(EDGES))
moderate = st.one_of(st.floats(-1e9, 1e9, width=32), halves)
powers = st.integers(-60, 60).map(lambda k: 2.0**k)
scales = st.one_of(st.floats(2.0**-60, 2.0**60, width=32), st.floats(2.0**-10, 2.0**10, width=32), powers)


def tensors(elements=numbers, min_size=0, max_size=16):
    return st.lists(elements, min_size=min_size, max_size=max_size).map(lambda x: torch.tensor(x, dtype=torch.float32))


def specs(**fixed):
    drawn = {
        "bits": st.sampled_from([3, 4, 7, 8, 16]),
        "sign": st.sampled_from(list(Sign)),
        "symmetric": st.booleans(),
        "scale": st.sampled_from(list(ScaleKind)),
        "power_of_two_rule": st.sampled_from(list(PowerOfTwoRule)),
        "reduce_range": st.booleans(),
        "rounding": roundings,
    }
    drawn |= {key: value if isinstance(value, st.SearchStrategy) else st.just(value) for key, value in fixed.items()}
    return st.builds(TensorSpec, **drawn)


def rounded(value: Fraction, rounding: Rounding) -> int:
    """The integer that `rounding` makes of `value`, by its definition."""
    below, rest = value.__floor__(), value - value.__floor__()
    up = {
        Rounding.FLOOR: False,
        Rounding.HALF_UP: rest >= Fraction(1, 2),
        Rounding.HALF_AWAY: rest > Fraction(1, 2) or (rest == Fraction(1, 2) and value > 0),
        Rounding.HALF_EVEN: rest > Fraction(1, 2) or (rest == Fraction(1, 2) and below % 2 == 1),
    }
    return below + up[rounding]
