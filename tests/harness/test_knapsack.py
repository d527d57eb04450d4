"""The exact choice of layers against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.harness.knapsack import least_damage

LAYERS = st.lists(st.tuples(st.floats(-0.2, 1.0), st.integers(0, 40)), min_size=1, max_size=9)
WHOLE = st.lists(st.tuples(st.integers(-2, 5), st.integers(0, 6)), min_size=1, max_size=12)


@given(LAYERS, st.floats(0, 1))
@settings(deadline=None)
def test_no_other_set_does_less_damage(layers, share):
    damages, params = [d for d, _ in layers], [p for _, p in layers]
    wanted = round(share * sum(params))
    chosen = least_damage(damages, params, wanted)
    assert chosen == sorted(set(chosen))
    assert sum(params[k] for k in chosen) >= wanted
    best = min(
        sum(damages[k] for k in some)
        for size in range(len(layers) + 1)
        for some in itertools.combinations(range(len(layers)), size)
        if sum(params[k] for k in some) >= wanted
    )
    assert sum(damages[k] for k in chosen) <= best + 1e-9


def brute_force(damages, params, wanted):
    """Every set at once: least damage, then fewest layers, then lowest indices."""
    count = len(params)
    sets = np.arange(2**count)
    # Layer 0 is the highest bit: of two sets of equal size, the larger number has lower indices.
    taken = (sets[:, None] >> np.arange(count)[::-1]) & 1
    enough = np.flatnonzero(taken @ np.array(params) >= wanted)
    damage, layers = taken @ np.array(damages), taken.sum(1)
    best = enough[np.lexsort((-sets[enough], layers[enough], damage[enough]))[0]]
    return np.flatnonzero(taken[best]).tolist()


@given(WHOLE, st.floats(0, 1))
@settings(deadline=None, max_examples=150)
def test_many_equal_sets_and_the_right_one(layers, share):
    damages, params = [d for d, _ in layers], [p for _, p in layers]
    wanted = round(share * sum(params))
    assert least_damage(damages, params, wanted) == brute_force(damages, params, wanted)


def test_eighteen_layers_of_unlike_sizes():
    draw = np.random.default_rng(0)
    for share in (0.2, 0.5, 0.8):
        damages = draw.exponential(size=18).tolist()
        params = draw.integers(100, 1_000, size=18).tolist()
        wanted = round(share * sum(params))
        assert least_damage(damages, params, wanted) == brute_force(damages, params, wanted)


def test_ties_take_fewer_layers_then_lower_indices():
    assert least_damage([0.0, 0.0, 0.0], [2, 1, 1], 2) == [0]
    assert least_damage([1.0, 1.0, 1.0], [1, 1, 1], 1) == [0]
    assert least_damage([0.3, 0.2, 0.1, 0.1, 0.2, 0.3], [1] * 6, 3) == [1, 2, 3]
    assert least_damage([0.3, 0.2, 0.1, 0.1, 0.2, 0.3], [1] * 6, 5) == [0, 1, 2, 3, 4]
    # Two of damage 1 do as much as one of damage 2, whatever stands beside them.
    for others in range(12):
        damages, sizes = [0.0] * others + [1.0, 1.0, 2.0], [0] * others + [1, 1, 2]
        assert least_damage(damages, sizes, 2) == [others + 2]


def test_nothing_wanted_takes_what_does_harm():
    assert least_damage([0.5, -0.1, 0.0], [3, 2, 1], 0) == [1]


def test_large_sizes_still_meet_the_budget():
    params = [10_005_121, 34_755_843, 7_000_003, 20_000_017]
    wanted = 41_000_000
    chosen = least_damage([0.4, 0.3, 0.1, 0.2], params, wanted)
    assert sum(params[k] for k in chosen) >= wanted
    assert chosen == [1, 2]


def test_scaling_costs_no_more_than_a_slightly_larger_request():
    """Rounding each size down loses less than one bin of wanted / 200,000 a layer."""
    draw = np.random.default_rng(1)
    for _ in range(10):
        damages = draw.exponential(size=14).tolist()
        params = (draw.integers(10**6, 10**8, size=14) | 1).tolist()
        wanted = int(0.5 * sum(params))
        chosen = least_damage(damages, params, wanted)
        assert sum(params[k] for k in chosen) >= wanted
        slack = 14 * (wanted // 200_000 + 1)
        bound = brute_force(damages, params, wanted + slack)
        assert sum(damages[k] for k in chosen) <= sum(damages[k] for k in bound) + 1e-9


def test_what_cannot_be_met_is_refused():
    with pytest.raises(ValueError, match="all layers hold 3 parameters, 4 are to go"):
        least_damage([1.0], [3], 4)
    with pytest.raises(ValueError, match="one damage and one size"):
        least_damage([1.0], [3, 4], 1)
    with pytest.raises(ValueError, match="finite"):
        least_damage([float("nan")], [3], 1)
