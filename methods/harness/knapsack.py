"""Which layers to remove: least damage for at least so many parameters, solved exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_BINS = 20_000  # resolution of the parameter axis, as a fraction of the request


def least_damage(damages: Sequence[float], params: Sequence[int], wanted: int) -> list[int]:
    """Indices R, ascending, that minimise sum of damages with sum of params >= wanted.

    Dynamic programming over scaled parameters. Sizes are rounded down, so what is removed truly
    reaches `wanted`; where the sizes share a large divisor nothing is lost by scaling. Layers that
    do good when removed (negative damage) always go. Among equals the set with fewer layers wins,
    then the one with lower indices.

    Raises:
        ValueError: all layers together hold less than `wanted`, or sizes are negative.
    """
    if len(damages) != len(params) or any(size < 0 for size in params):
        raise ValueError("one damage and one size of at least 0 for every layer")
    if sum(params) < wanted:
        raise ValueError(f"all layers hold {sum(params)} parameters, {wanted} are to go")
    if wanted <= 0:
        return [index for index, damage in enumerate(damages) if damage < 0]
    divisor = int(np.gcd.reduce(np.array([size for size in params if size] or [1])))
    scale = divisor if -(-wanted // divisor) <= _BINS else -(-wanted // _BINS)
    need = -(-wanted // scale)
    sizes = [size // scale for size in params]
    if sum(sizes) < need:  # rounding lost the last feasible sets: everything has to go
        return list(range(len(params)))
    # best[j]: (damage, layers) of the cheapest set whose scaled size, capped at `need`, is j.
    best = np.full(need + 1, np.inf)
    count = np.full(need + 1, np.iinfo(np.int64).max // 2)
    best[0], count[0] = 0.0, 0
    taken = np.zeros((len(sizes), need + 1), dtype=bool)
    came = np.zeros((len(sizes), need + 1), dtype=np.int64)
    targets = np.arange(need + 1)
    for index in reversed(range(len(sizes))):  # so that lower indices decide last, and win ties
        reached = np.minimum(targets + sizes[index], need)
        new, new_count = best.copy(), count.copy()
        for start in np.flatnonzero(np.isfinite(best)):
            end = reached[start]
            key = (best[start] + damages[index], count[start] + 1)
            if key <= (new[end], new_count[end]):
                new[end], new_count[end] = key
                taken[index, end], came[index, end] = True, start
        best, count = new, new_count
    chosen, at = [], need
    for index in range(len(sizes)):
        if taken[index, at]:
            chosen.append(index)
            at = int(came[index, at])
    return chosen
