"""Printed sizes against the architecture."""

from __future__ import annotations

from pathlib import Path

import pytest

from kb.load import load_literature
from methods.harness import claims

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def found():
    return claims.claims(load_literature(ROOT / "papers.yaml"))


@pytest.mark.parametrize(
    ("printed", "unit"), [(35.7, 0.1), (860.0, 1.0), (0.86, 0.01), (6.1, 0.1), (19.8512, 1e-4)]
)
def test_the_last_printed_digit(printed, unit):
    assert claims.last_digit(printed) == pytest.approx(unit)


def test_diff_pruning_on_cifar_agrees(found):
    rows = [c for c in found if c.paper == "diff-pruning" and c.row.startswith("cifar10")]
    assert {(c.metric, c.what) for c in rows} >= {("params", "dense"), ("params", "pruned")}
    assert all(c.verdict == "agrees" for c in rows), [c for c in rows if c.verdict != "agrees"]
    pruned = next(c for c in rows if c.what == "pruned" and c.metric == "params")
    assert pruned.recomputed == pytest.approx(19.851157)


def test_prunable_units_of_sdxl():
    """2.1847 B of 2.5675 B belong to heads and neurons; 20 % fewer leaves 2.1305 B."""
    assert claims.heads_and_neurons("sdxl") / 1e9 == pytest.approx(2.1847, abs=1e-4)
    left = 2_567_463_684 - 0.2 * claims.heads_and_neurons("sdxl")
    assert left / 1e9 == pytest.approx(2.1305, abs=1e-4)


def test_published_dit_depths():
    """D28, D19, D14 and D7 of the official layout, to the parameter."""
    sizes = [claims._published_dit(blocks) for blocks in (28, 19, 14, 7)]
    assert sizes == [675_129_632, 459_983_264, 340_457_504, 173_121_440]


def test_every_claim_has_a_verdict_and_an_assumption(found):
    assert found
    counts = claims.summary(found)
    assert sum(counts.values()) == len(found)
    assert counts["agrees"] > 20
    for claim in found:
        assert claim.assumption
        assert (claim.recomputed is None) == (claim.verdict == "not recomputable")
