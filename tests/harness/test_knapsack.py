"""The exact choice of layers against brute force."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from methods.harness.knapsack import least_damage

LAYERS = st.lists(st.tuples(st.floats(-0.2, 1.0), st.integers(0, 40)), min_size=1, max_size=9)


@given(LAYERS, st.floats(0, 1))
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


def test_ties_take_fewer_layers_then_lower_indices():
    assert least_damage([0.0, 0.0, 0.0], [2, 1, 1], 2) == [0]
    assert least_damage([1.0, 1.0, 1.0], [1, 1, 1], 1) == [0]


def test_large_sizes_still_meet_the_budget():
    params = [10_005_121, 34_755_843, 7_000_003, 20_000_017]
    wanted = 41_000_000
    chosen = least_damage([0.4, 0.3, 0.1, 0.2], params, wanted)
    assert sum(params[k] for k in chosen) >= wanted
    assert chosen == [1, 2]


def test_what_cannot_be_met_is_refused():
    with pytest.raises(ValueError, match="all layers hold 3 parameters, 4 are to go"):
        least_damage([1.0], [3], 4)
    with pytest.raises(ValueError, match="one damage and one size"):
        least_damage([1.0], [3, 4], 1)
