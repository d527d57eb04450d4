"""Speed of 2:4 kernels: what is told of given times, and the refusal without a GPU."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F

from methods.experiments import semi_structured_speed as speed
from methods.harness.experiment import Lab
from methods.harness.masks import NOfM, removed


def measured(dense, sparse, absent=False):
    """One mapping a seed; times in milliseconds."""
    return [
        {
            "dense": {"ms": a, "error": 0.0, "bytes": 1.0, "note": ""},
            "cusparselt": {"ms": b, "error": 0.001 * (k + 1), "bytes": 0.5625, "note": ""},
            "cutlass": {"ms": None, "error": None, "bytes": None, "note": "not available: no"}
            if absent
            else {"ms": 2 * b, "error": 0.0, "bytes": 0.5625, "note": ""},
        }
        for k, (a, b) in enumerate(zip(dense, sparse, strict=True))
    ]


def test_a_summary_by_hand():
    rows = speed.summary(
        "block 1536", 1024, measured([3.0, 3.0, 3.0], [1.5, 1.5, 1.5], absent=True)
    )
    dense, sparse, absent = rows
    assert (dense["speedup"], dense["low"], dense["ms"]) == (1.0, 1.0, 3.0)
    assert sparse["speedup"] == pytest.approx(2.0) and sparse["low"] == pytest.approx(2.0)
    assert sparse["error"] == pytest.approx(0.003) and sparse["bytes"] == 0.5625
    assert absent["ms"] is None and absent["note"] == "not available: no"
    json.dumps(rows)


def test_the_lower_end_is_the_intervals():
    (_, sparse, _) = speed.summary("block 1536", 1024, measured([1.0, 1.0], [0.5, 1 / 3]))
    # log 2 and log 3: their mean less t(1, .975) = 12.706 times half their difference.
    middle, half = (math.log(2) + math.log(3)) / 2, 12.7062 * (math.log(3) - math.log(2)) / 2
    assert sparse["speedup"] == pytest.approx(math.exp(middle))
    assert sparse["low"] == pytest.approx(math.exp(middle - half), rel=1e-4)


def test_blocks_decide_with_their_best_kernel():
    fast = speed.summary("block 1536", 1024, measured([3.0] * 3, [1.5] * 3))
    slow = speed.summary("block 3072", 1024, measured([3.0] * 3, [2.9] * 3))
    layer = speed.summary("linear 8 to 8", 1024, measured([3.0] * 3, [6.0] * 3))
    shown = speed.judge(fast + layer)
    assert shown.verdict == "shown"
    assert "block 1536, 1024 tokens 2.000 (at least 2.000, cusparselt)" in shown.answer
    assert "Single layers: 0.250 to 0.500 times" in shown.answer
    mixed = speed.judge(fast + slow)
    assert mixed.verdict == "in part" and mixed.why.endswith("block 3072, 1024 tokens")
    assert speed.judge(slow).verdict == "not shown"
    none = [row | {"speedup": None} if row["kernel"] != "dense" else row for row in slow]
    assert "no kernel" in speed.judge(none).answer


def test_without_a_gpu_it_is_refused():
    with pytest.raises(ValueError, match="needs a CUDA device, not cpu"):
        speed.investigate(Lab(device="cpu"), speed.Config())


def test_layers_and_blocks_are_two_of_four_and_missing_kernels_are_named():
    """On a CPU no kernel is there, and everything around the kernels runs."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1, 5, 1536, generator=draw)
    made = speed.linear((1536, 64), x, draw)
    assert made["dense"].bytes == 1536 * 64 * 4
    weight = made["dense"].run.args[1]
    assert torch.equal(weight == 0, removed(weight.abs(), NOfM(2, 4)))
    assert torch.equal(made["dense"].run(), F.linear(x, weight))
    with torch.no_grad():
        whole = speed.block(1536, x, draw)
        assert whole["dense"].run().shape == x.shape
    assert whole["dense"].bytes == 12 * 1536 * 1536 * 4  # four of attention, twice four of the MLP
    for variants in (made, whole):
        for name, variant in variants.items():
            if name != "dense":
                assert variant.run is None
                assert variant.note.startswith("not available: ") and "CUDA" in variant.note


class FakeEvent:
    """A mark on a clock that each call of a kernel moves by what the kernel costs."""

    now = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = FakeEvent.now

    def elapsed_time(self, end):
        return end.at - self.at


def test_kernels_take_turns_and_only_their_own_calls_are_timed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: calls.append("sleep"))
    calls = []

    def kernel(name, cost):
        def run():
            calls.append(name)
            FakeEvent.now += cost

        return run

    runs = {"dense": kernel("dense", 3.0), "sparse": kernel("sparse", 1.0)}
    times = speed.interleaved(runs, speed.Config(rounds=2, calls=2))
    assert times == {"dense": [3.0, 3.0], "sparse": [1.0, 1.0]}
    turns = [["dense", "sparse"], ["sparse", "dense"], ["dense", "sparse"]]
    assert calls == [c for turn in turns for name in turn for c in ("sleep", name, name)]


def test_what_is_told_of_a_kernel_is_what_it_answered(monkeypatch):
    """The packed weight is stood in for by a rounded one: its error and bytes must be told."""
    monkeypatch.setattr(
        speed, "interleaved", lambda runs, config: {n: [1.0, 3.0, 2.0] for n in runs}
    )
    monkeypatch.setattr(speed, "pack", lambda weight, backend: weight * 1.5)
    monkeypatch.setattr(speed, "packed_bytes", lambda weight: weight.numel())
    found = speed.measure((32, 16), 4, 0, torch.device("cpu"), speed.Config())
    assert found["dense"]["error"] == 0 and found["dense"]["bytes"] == 1
    assert found["cutlass"]["error"] == pytest.approx(0.5, abs=0.01)
    assert found["cutlass"]["bytes"] == 0.5  # one byte a weight here, two in bf16
    assert found["cutlass"]["ms"] == 2.0
    assert found[speed.SEARCHED]["ms"] is None and found[speed.SEARCHED]["note"]
    (_, sparse, _, searched) = speed.summary("linear", 4, [found, found])
    assert sparse["speedup"] == 1.0 and searched["speedup"] is None


@pytest.mark.cuda
def test_it_runs_on_a_gpu():
    config = speed.Config(least=64, rounds=2, calls=2)
    found = speed.investigate(Lab(seeds=(0, 1), device="cuda"), config)
    json.dumps(found.rows)
    assert len(found.rows) == 2 * 3 * (3 * 4 + 3)  # widths, tokens, kernels of layers and blocks
    for row in found.rows:
        assert (row["ms"] is None) == bool(row["note"])
        if row["ms"] is not None:
            assert row["ms"] > 0 and row["error"] <= 0.05
