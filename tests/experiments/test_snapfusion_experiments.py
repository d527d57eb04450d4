"""SnapFusion's experiments: their arithmetic by hand, and one run of each at small size."""

from __future__ import annotations

import json
import math

import pytest
import torch

from methods import registry, snapfusion
from methods.experiments import (
    decoder_pruning,
    snapfusion_robustness,
    snapfusion_value_order,
    step_distillation,
    step_distillation_guidance,
)
from tests.experiments import small_lab, text_lab

MODULES = (
    decoder_pruning,
    snapfusion_robustness,
    snapfusion_value_order,
    step_distillation,
    step_distillation_guidance,
)


@pytest.mark.parametrize("module", MODULES)
def test_the_command_line_knows_it(module):
    name = module.__name__.rpartition(".")[2]
    described = registry.describe_experiment(name)
    assert module.Config() == module.Config(**described.defaults)


# --- robustness ------------------------------------------------------------------------------


def robustness_rows(plain, robust, lost=0.1):
    return [
        {"seed": seed, "training": kind, "damage": damage, "lost": lost}
        | {"error": 1.0, "worst": damage, "agreement": 0.9}
        for seed, pair in enumerate(zip(plain, robust, strict=True))
        for kind, damage in zip(("plain", "robust"), pair, strict=True)
    ]


def test_robustness_asks_for_half_the_damage():
    robust = [0.1, 0.11, 0.09]
    judge = snapfusion_robustness.judge
    found = judge(robustness_rows([0.3, 0.32, 0.28], robust))
    assert found.verdict == "shown" and "3.00 times less" in found.answer
    part = judge(robustness_rows([0.15, 0.16, 0.14], robust))
    assert part.verdict == "in part" and "not surely 2 times" in part.why
    assert judge(robustness_rows([0.09, 0.12, 0.1], robust)).verdict == "not shown"


def test_robustness_at_small_size(tmp_path, monkeypatch):
    lab = small_lab.lab(tmp_path, monkeypatch, tasks=("fashion_dit",))
    config = snapfusion_robustness.Config(
        task="fashion_dit",
        steps=3,
        batch_size=4,
        judged=1,
        samples=4,
        sampling_steps=2,
        precision="fp32",
    )
    found = snapfusion_robustness.investigate(lab, config)
    assert len(found.rows) == 4 and json.dumps(found.rows)
    # The damage of each of two blocks by hand, for the first model.
    bench = lab.bench("fashion_dit")
    pipe = snapfusion_robustness.trained(bench, 0, "robust", config)
    answers = snapfusion.judge_of(
        bench.task_at(0), bench.dense, snapfusion_robustness.settings(config)
    )
    whole = answers.error(pipe.denoiser)
    damages = []
    for index in range(2):
        without = snapfusion.drop(pipe.private_copy(), [f"transformer_blocks.{index}"])
        damages.append(answers.error(without.denoiser) - whole)
    row = found.rows[1]
    assert (row["training"], row["seed"]) == ("robust", 0)
    assert row["damage"] == pytest.approx(sum(damages) / 2)
    assert row["worst"] == pytest.approx(max(damages)) and row["error"] == pytest.approx(whole)


# --- order -----------------------------------------------------------------------------------


def order_rows(by_value, random, inverse, latency=(0.7, 0.71, 0.69)):
    return [
        {"seed": seed, "order": name, "frechet": found[seed], "latency": latency[seed]}
        | {"removed": 3, "params": 0.7, "target": 0.7, "agreement": 0.5, "mse": 0.1}
        for seed in range(3)
        for name, found in (
            ("value", by_value),
            ("classifier", [2 * v for v in by_value]),
            ("random", random),
            ("inverse", inverse),
        )
    ]


def test_value_order_has_to_beat_both_and_be_faster():
    good, bad = (100.0, 110.0, 105.0), (200.0, 230.0, 210.0)
    judge = snapfusion_value_order.judge
    shown = judge(order_rows(good, bad, bad))
    assert shown.verdict == "shown"
    assert "by the classifier: Fréchet distance 2 (2 to 2, n=3)" in shown.answer
    part = judge(order_rows(good, good, bad))
    assert part.verdict == "in part" and "random" in part.why and "inverse" not in part.why
    assert judge(order_rows(bad, good, good)).verdict == "not shown"
    slow = judge(order_rows(good, bad, bad, latency=(1.0, 1.02, 1.01)))
    assert slow.verdict == "in part" and "latency" in slow.why


def test_orders_by_hand(tmp_path, monkeypatch):
    around = small_lab.lab(tmp_path, monkeypatch, tasks=("fashion_dit",)).bench("fashion_dit")
    task, values = around.task_at(0), [0.3, -1.0, 0.2]
    assert list(snapfusion_value_order.order("value", task)(values)) == [1, 2, 0]
    assert list(snapfusion_value_order.order("inverse", task)(values)) == [0, 2, 1]
    chance = snapfusion_value_order.order("random", task)
    drawn = [tuple(chance(values)) for _ in range(30)]
    assert {tuple(sorted(order)) for order in drawn} == {(0, 1, 2)} and len(set(drawn)) > 2
    again = snapfusion_value_order.order("random", task)
    assert [tuple(again(values)) for _ in range(30)] == drawn


def test_value_order_at_small_size(tmp_path, monkeypatch):
    lab = text_lab.lab(tmp_path, monkeypatch)
    config = snapfusion_value_order.Config(
        latency=0.9,
        robust_steps=2,
        between_steps=1,
        block_steps=8,
        batch_size=2,
        judged=1,
        shown=2,
        sampling_steps=1,
        precision="fp32",
    )
    trained = []
    plain = snapfusion.retrain
    monkeypatch.setattr(
        snapfusion, "retrain", lambda *args: trained.append(args[2].steps) or plain(*args)
    )
    found = snapfusion_value_order.investigate(lab, config)
    assert sum(trained) == 2 * (2 + 4 * (8 - 2))  # robust once for all orders, then 8 for each
    assert len(found.rows) == 2 * 4 and json.dumps(found.rows)
    for row in found.rows:
        assert row["target"] <= 0.9 and row["removed"] >= 1 and row["params"] < 1
        assert row["latency"] > 0 and row["frechet"] > 0


# --- steps -----------------------------------------------------------------------------------


def step_rows(before, after, agreement=(0.5, 0.5)):
    return [
        {"seed": seed, "steps": steps, "model": name, "frechet": distances[seed] / (steps / 4)}
        | {"agreement": agree + 0.01 * seed, "mse": 0.1, "ssim": 0.5}
        for seed in range(3)
        for steps in (8, 4)
        for name, distances, agree in zip(
            ("undistilled", "distilled"), (before, after), agreement, strict=True
        )
    ]


def test_step_distillation_is_judged_in_the_fewest_steps():
    low, high = (100.0, 110.0, 105.0), (200.0, 230.0, 210.0)
    shown = step_distillation.judge(step_rows(high, low))
    assert shown.verdict == "shown"
    assert "In 8 steps, undistilled: Fréchet distance 106.7" in shown.answer
    assert "Distilled: 105.0, ratio" in shown.answer
    assert step_distillation.judge(step_rows(low, high)).verdict == "not shown"
    part = step_distillation.judge(step_rows(low, high, agreement=(0.5, 0.7)))
    assert part.verdict == "in part" and "asked for" in part.why


def test_step_distillation_at_small_size(tmp_path, monkeypatch):
    lab = small_lab.lab(tmp_path, monkeypatch, tasks=("fashion_dit",))
    config = step_distillation.Config(
        task="fashion_dit",
        from_steps=4,
        first=2,
        last=1,
        distill_steps=2,
        batch_size=4,
        precision="fp32",
    )
    found = step_distillation.investigate(lab, config)
    assert len(found.rows) == 2 * 2 * 2 and json.dumps(found.rows)
    # The undistilled model in the protocol's own two steps is the dense model.
    two = [row for row in found.rows if (row["steps"], row["model"]) == (2, "undistilled")]
    assert all(row["mse"] == 0 for row in two)
    assert all(row["mse"] > 0 for row in found.rows if row not in two)


def guidance_rows(none, some, every):
    return [
        {"seed": seed, "p": p, "agreement": found[seed], "frechet": 100.0 + p, "mse": 0.1}
        for seed in range(3)
        for p, found in ((0.0, none), (0.1, some), (1.0, every))
    ]


def test_guidance_has_to_rise():
    low, middle, high = (0.5, 0.51, 0.52), (0.6, 0.61, 0.62), (0.8, 0.82, 0.81)
    judge = step_distillation_guidance.judge
    found = judge(guidance_rows(low, middle, high))
    assert found.verdict == "shown" and "0.510 at p = 0, 0.610 at p = 0.1" in found.answer
    part = judge(guidance_rows(middle, low, high))
    assert part.verdict == "in part" and "one after the other" in part.why
    assert judge(guidance_rows(high, middle, low)).verdict == "not shown"


def test_guidance_at_small_size(tmp_path, monkeypatch):
    lab = small_lab.lab(tmp_path, monkeypatch, tasks=("fashion_dit",))
    config = step_distillation_guidance.Config(
        task="fashion_dit", from_steps=4, steps=2, distill_steps=2, batch_size=4, precision="fp32"
    )
    found = step_distillation_guidance.investigate(lab, config)
    assert [(row["seed"], row["p"]) for row in found.rows] == [
        (seed, p) for seed in (0, 1) for p in (0.0, 0.1, 1.0)
    ]
    ends = [row["mse"] for row in found.rows if row["p"] in (0.0, 1.0)]
    assert len(set(ends)) == 4, "p made no difference"


# --- decoder ---------------------------------------------------------------------------------


def decoder_rows(cut, generated, encoded, latency=(0.5, 0.52, 0.51)):
    found = {"whole": [0.0] * 3, "cut": cut, "generated": generated, "encoded": encoded}
    return [
        {"seed": seed, "decoder": name, "mse": errors[seed], "psnr": None, "frechet": 100.0}
        | {
            "bytes": 400 if name == "whole" else 100,
            "latency": 1.0 if name == "whole" else latency[seed],
        }
        for seed in range(3)
        for name, errors in found.items()
    ]


def test_decoder_verdicts():
    small, middle, large = (0.01, 0.011, 0.009), (0.04, 0.05, 0.045), (0.4, 0.41, 0.42)
    judge = decoder_pruning.judge
    found = judge(decoder_rows(large, small, middle))
    assert found.verdict == "shown" and "25.0% of the bytes" in found.answer
    part = judge(decoder_rows(large, middle, small))
    assert part.verdict == "in part" and "encoded" in part.why and "cut" not in part.why
    assert judge(decoder_rows(small, large, middle)).verdict == "not shown"
    slow = judge(decoder_rows(large, small, middle, latency=(1.0, 1.1, 0.95)))
    assert slow.verdict == "in part" and "time" in slow.why


def test_psnr_by_hand():
    assert decoder_pruning.psnr(4.0) == 0.0  # all wrong by the whole range
    assert decoder_pruning.psnr(0.0004) == pytest.approx(40.0)
    assert decoder_pruning.psnr(0.04) == pytest.approx(10 * math.log10(100))


def test_decoder_pruning_at_small_size(tmp_path, monkeypatch):
    lab = text_lab.lab(tmp_path, monkeypatch)
    config = decoder_pruning.Config(
        steps=10,
        batch_size=2,
        learning_rate=3e-3,
        sampling_steps=1,
        held_out=4,
        precision="fp32",
    )
    before = {
        k: v.clone() for k, v in lab.bench("fashion_t2i").dense.autoencoder.state_dict().items()
    }
    found = decoder_pruning.investigate(lab, config)
    after = lab.bench("fashion_t2i").dense.autoencoder.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert len(found.rows) == 2 * 4 and json.dumps(found.rows)
    for seed in (0, 1):
        rows = {row["decoder"]: row for row in found.rows if row["seed"] == seed}
        assert rows["generated"]["mse"] < rows["cut"]["mse"]
        assert rows["whole"]["mse"] == 0 and rows["whole"]["psnr"] is None
        assert 0.2 < rows["cut"]["bytes"] / rows["whole"]["bytes"] < 0.35
        assert rows["whole"]["latency"] == 1.0 and rows["cut"]["latency"] > 0
