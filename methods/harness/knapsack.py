"""Which layers to remove: least damage for at least so many parameters: a 0/1 knapsack."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_BINS = 200_000  # resolution of the parameter axis; 8 bytes each for every layer
_LARGEST = 2**60  # what the costs of all layers together may reach, in 64 bits


def least_damage(damages: Sequence[float], params: Sequence[int], wanted: int) -> list[int]:
    """Indices R, ascending, that minimise sum of damages with sum of params >= wanted.

    Dynamic programming over scaled parameters. Sizes are rounded down, so what is removed truly
    reaches `wanted`; where the request is at most 200,000 times the sizes' common divisor, as on
    all shipped bases, nothing is lost by scaling and the optimum is exact. Beyond, sizes are known
    to 1/200,000 of the request. Layers that do good when removed (negative damage) always go. Among
    equals the set with fewer layers wins, then the one with lower indices.

    Raises:
        ValueError: all layers together hold less than `wanted`, sizes are negative, or a damage is
            not finite.
    """
    if len(damages) != len(params) or any(size < 0 for size in params):
        raise ValueError("one damage and one size of at least 0 for every layer")
    if not all(map(math.isfinite, damages)):
        raise ValueError("every damage has to be a finite number")
    if sum(params) < wanted:
        raise ValueError(f"all layers hold {sum(params)} parameters, {wanted} are to go")
    wanted, count = max(wanted, 0), len(params)
    divisor = math.gcd(*params) or 1
    scale = divisor if -(-wanted // divisor) <= _BINS else -(-wanted // _BINS)
    need = -(-wanted // scale)
    sizes = [size // scale for size in params]
    if sum(sizes) < need:  # rounding lost the last feasible sets: everything has to go
        return list(range(count))
    # Whole numbers add up alike in any order, floats do not; each layer also costs 1 as such.
    # The scale is a power of two, so that sums which are equal stay so.
    largest = max(map(abs, damages), default=0.0)
    bits = (_LARGEST // (count + 1) ** 2).bit_length() - 1 - math.frexp(largest)[1]
    costs = [round(math.ldexp(damage, bits)) * (count + 1) + 1 for damage in damages]
    # rest[i, j]: what the layers from i on cost at least, when j is gone already; all for need.
    rest = np.full((count + 1, need + 1), 4 * _LARGEST, dtype=np.int64)
    rest[count, need] = 0
    gone = np.arange(need + 1)
    for index in reversed(range(count)):
        reached = np.minimum(gone + sizes[index], need)
        rest[index] = np.minimum(rest[index + 1], costs[index] + rest[index + 1, reached])
    chosen, at = [], 0
    for index in range(count):  # at equal cost the lower index is taken
        reached_now = min(at + sizes[index], need)
        if costs[index] + rest[index + 1, reached_now] <= rest[index + 1, at]:
            chosen.append(index)
            at = reached_now
    return chosen
