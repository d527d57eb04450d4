"""Peak memory of a compression step on the CPU."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from methods.harness import cost
from methods.harness.cost import metered

MB = 1_000_000


def work(megabytes: int) -> None:
    """Hold that much in pieces that the C allocator keeps when they are freed."""
    pieces = [torch.ones(25_000) for _ in range(megabytes * 10)]
    del pieces


def growth(megabytes: int) -> int:
    with metered(nn.Linear) as spent:
        work(megabytes)
    return spent.peak_bytes


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a peak that can be reset")
def test_memory_that_was_used_and_freed_before_counts_again():
    growth(300)  # leaves its pages with the allocator
    first, smaller, again = growth(200), growth(50), growth(200)
    assert first == pytest.approx(200 * MB, rel=0.15)
    assert smaller == pytest.approx(50 * MB, rel=0.3)
    assert again == pytest.approx(200 * MB, rel=0.15)


def test_without_a_kernel_that_keeps_the_peak_it_is_polled(monkeypatch, tmp_path):
    monkeypatch.setattr(cost, "_CLEAR", tmp_path)  # a folder cannot be written to
    monkeypatch.setattr(cost, "_POLL_SECONDS", 0.001)
    with metered(nn.Linear) as spent:
        held = [torch.ones(25_000) for _ in range(2_000)]
        total = sum(float(piece.sum()) for piece in held)
    assert total == 50e6
    assert spent.peak_bytes > 150 * MB
