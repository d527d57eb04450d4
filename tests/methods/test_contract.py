"""What every method must keep, tried on tiny models of the real classes."""

from __future__ import annotations

import dataclasses
import importlib
import json

import pytest
import torch
from diffusers import DDIMScheduler

from methods import registry
from methods.harness.checkpoint import load_pruned, save_pruned
from methods.harness.denoise import predict
from methods.harness.masks import as_matrix
from tests.harness import tiny

CASES = {
    # case -> (method, settings)
    "dense": ("dense", {}),
    "random": ("random_pruning", {"ratio": 0.5}),
    "random_macs": ("random_pruning", {"macs": 0.5}),
    "random_reinit": ("random_pruning", {"ratio": 0.25, "reinit": True}),
    "random_whole": ("random_pruning", {"ratio": 0.5, "rule": "whole"}),
    "magnitude_l1": ("magnitude", {"ratio": 0.5, "p": 1}),
    "magnitude_l2": ("magnitude", {"ratio": 0.5}),
    "magnitude_whole": ("magnitude", {"macs": 0.75, "rule": "whole", "order": "one-shot"}),
    "magnitude_weight": ("magnitude", {"ratio": 0.5, "unit": "weight"}),
    "diff_pruning": ("diff_pruning", {"ratio": 0.5, "batch_size": 4, "stride": 250}),
    "diff_pruning_exp": (
        "diff_pruning",
        {"macs": 0.5, "batch_size": 4, "stride": 250, "variant": "ddpm_exp"},
    ),
    "diff_pruning_whole": (
        "diff_pruning",
        {"macs": 0.75, "batch_size": 4, "stride": 250, "rule": "whole", "order": "one-shot"},
    ),
    "taylor": ("taylor", {"ratio": 0.5, "batch_size": 4, "stride": 250}),
    "finetune": ("finetune", {"steps": 2, "batch_size": 4}),
    "distill": ("distill", {"steps": 2, "batch_size": 4}),
    "uniform_depth": ("uniform_depth", {"ratio": 0.5}),
    "laptop_diff": ("laptop_diff", {"ratio": 0.3, "batch_size": 4, "timesteps": 2}),
    "laptop_diff_blocks": (
        "laptop_diff",
        {"ratio": 0.3, "batch_size": 4, "timesteps": 1, "layers": "blocks"},
    ),
    "bk_sdm": ("bk_sdm", {}),
    "bk_sdm_tiny": ("bk_sdm", {"size": "tiny"}),
    "ecodiff": (
        "ecodiff",
        {"ratio": 0.5, "prompts": 4, "epochs": 1, "steps": 2, "learning_rate": 0.5},
    ),
    "ecodiff_step": (
        "ecodiff",
        {
            "params": 0.8,
            "prompts": 4,
            "epochs": 1,
            "steps": 2,
            "objective": "step",
            "scope": "global",
            "regulariser": "l0",
            "beta": 0.001,
        },
    ),
    "snapfusion": (
        "snapfusion",
        {
            "latency": 0.8,
            "clock": "macs",
            "robust_steps": 2,
            "between_steps": 1,
            "batch_size": 4,
            "judged": 1,
            "steps": 5,
            "from_steps": 10,
            "distill_steps": 2,
        },
    ),
    "smaller_faster_sd": (
        "smaller_faster_sd",
        {
            "params": 0.7,
            "judged": 2,
            "batch_size": 4,
            "retrain_steps": 2,
            "probability": 0.5,
            "steps": 5,
            "from_steps": 12,
            "distill_steps": 2,
        },
    ),
    "smaller_faster_sd_steps_only": (
        "smaller_faster_sd",
        {"params": None, "batch_size": 4, "retrain_steps": 0, "steps": 5, "distill_steps": 1},
    ),
    "snapfusion_grown": (
        "snapfusion",
        {
            "latency": 1.2,
            "additions": 1,
            "clock": "macs",
            "robust_steps": 1,
            "between_steps": 1,
            "batch_size": 4,
            "judged": 1,
        },
    ),
    "sparsedm": ("sparsedm", {"steps": 2, "batch_size": 4}),
    "sparsedm_progressive": (
        "sparsedm",
        {"n": 1, "steps": 4, "batch_size": 2, "layout": "flattened", "progressive": True},
    ),
    "wanda": ("wanda", {"batch_size": 4, "timesteps": 1}),
    "wanda_runs": ("wanda", {"pattern": "n:m", "batch_size": 4, "timesteps": 1, "stages": 1}),
    "sparsegpt": ("sparsegpt", {"batch_size": 4, "timesteps": 1}),
    "sparsegpt_runs": (
        "sparsegpt",
        {"pattern": "n:m", "batch_size": 4, "timesteps": 1, "stages": 1},
    ),
}
CHANNEL_METHODS = ("random_pruning", "magnitude", "diff_pruning", "taylor")
GRADIENT_METHODS = ("diff_pruning", "taylor")


def settings(method, changes):
    return importlib.import_module(f"methods.{method}").Config(**changes)


def compress(method, pipe, around, config):
    return importlib.import_module(f"methods.{method}").compress(pipe, around, config)


def state(pipe):
    return {name: tensor.clone() for name, tensor in pipe.denoiser.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def build(name):
    return tiny.conditional(name) if name in ("t2i", "dit") else tiny.pipeline(name)


@pytest.fixture(params=["one_head", "many_heads"])
def base(request):
    return build(request.param)


BASES_OF_TASK = {
    "fashion_unet": ("one_head", "many_heads"),
    "fashion_dit": ("dit",),
    "fashion_t2i": ("t2i",),
}
EVERYWHERE = [
    (case, name)
    for case, (method, _) in CASES.items()
    for task in registry.describe(method).card["tasks"]
    for name in BASES_OF_TASK[task]
]


def test_every_method_is_tried():
    assert {method for method, _ in CASES.values()} == set(registry.names())


@pytest.mark.parametrize(("case", "name"), EVERYWHERE)
def test_contract(case, name, tmp_path):
    base = build(name)
    method, changes = CASES[case]
    if "distill_steps" in changes:  # steps are distilled where predicted images are not clipped
        scheduler = DDIMScheduler.from_config(base.scheduler.config, clip_sample=False)
        base = dataclasses.replace(base, scheduler=scheduler)
    config, around = settings(method, changes), tiny.task(base)
    before = state(base)
    pruned, notes = compress(method, base.private_copy(), around, config)

    assert same(before, state(base)), "the dense teacher was touched"
    json.dumps(notes)
    forbidden = {"frechet", "fid", "params", "macs", "latency", "speed"}
    assert not forbidden & set(notes), "a method does not grade itself"
    for name, module in pruned.denoiser.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        assert not any(hooks), f"{name} is left hooked"
        assert not hasattr(module, "parametrizations"), f"{name} is left parametrized"
    assert all(p.grad is None for p in pruned.denoiser.parameters()), "gradients are left behind"
    assert not pruned.denoiser.training

    batch = next(around.training_batches(2))
    with torch.no_grad():
        first = predict(pruned.denoiser, batch.x_t, batch.t, batch.condition)
    assert torch.isfinite(first).all()

    again, _ = compress(method, base.private_copy(), tiny.task(base), config)
    assert same(state(pruned), state(again)), "the same seed gave another model"

    save_pruned(pruned, tmp_path / "model", "tiny", notes)
    back = load_pruned(tmp_path / "model")
    assert same(state(pruned), state(back)), "reload is not bit-exact"
    with torch.no_grad():
        answer = predict(back.denoiser, batch.x_t, batch.t, batch.condition)
    assert (answer - first).abs().max() <= 1e-6


@pytest.mark.parametrize("method", CHANNEL_METHODS)
@pytest.mark.parametrize("request_", [{"ratio": 0.0}, {"macs": 1.0}])
def test_nothing_asked_is_the_identity(method, request_, base):
    extra = {"batch_size": 2, "stride": 500} if method in GRADIENT_METHODS else {}
    config = settings(method, request_ | extra)
    pruned, _ = compress(method, base.private_copy(), tiny.task(base), config)
    assert same(state(base), state(pruned))


@pytest.mark.parametrize("method", CHANNEL_METHODS)
def test_equal_requests_give_equal_shapes(method, base):
    """At one MACs target all channel methods cut to the same widths: only the choice differs."""
    shapes = []
    for name in (method, "random_pruning"):
        extra = {"batch_size": 2, "stride": 500} if name in GRADIENT_METHODS else {}
        pruned, _ = compress(
            name, base.private_copy(), tiny.task(base), settings(name, {"macs": 0.6} | extra)
        )
        shapes.append({k: v.shape for k, v in state(pruned).items()})
    assert shapes[0] == shapes[1]


def test_seeds_matter_where_chance_does(base):
    config = settings("random_pruning", {"ratio": 0.5})
    one, _ = compress("random_pruning", base.private_copy(), tiny.task(base, seed=0), config)
    two, _ = compress("random_pruning", base.private_copy(), tiny.task(base, seed=1), config)
    assert one.edits != two.edits


def test_unstructured_zeroes_the_asked_share_and_saves_no_macs(base):
    from methods.harness.surgery import MacsModel

    around = tiny.task(base)
    config = settings("magnitude", {"ratio": 0.5, "unit": "weight"})
    pruned, notes = compress("magnitude", base.private_copy(), around, config)
    for name, count in notes["zeroed"].items():
        weight = pruned.denoiser.get_submodule(name).weight
        assert count == int((weight == 0).sum()) == int(weight.numel() * 0.5)
    assert "conv_in" not in notes["zeroed"]
    example = around.example_inputs()
    costs = [MacsModel.of(p.denoiser, example).macs({}) for p in (base, pruned)]
    assert costs[0] == costs[1]


SPARSE = {
    "weights": ("magnitude", {"ratio": 0.5, "unit": "weight"}),
    "runs": ("wanda", {"pattern": "n:m", "batch_size": 4, "timesteps": 1}),
}


@pytest.mark.parametrize("recovery", ["finetune", "distill"])
@pytest.mark.parametrize("sparse", SPARSE)
def test_retraining_keeps_zeros_at_zero(sparse, recovery, base):
    """In every forward pass too: a loss taken of a denser model would train another one."""
    around = tiny.task(base)
    method, changes = SPARSE[sparse]
    pruned, pruning = compress(method, base.private_copy(), around, settings(method, changes))
    start = state(pruned)
    zeros = {f"{name}.weight": start[f"{name}.weight"] == 0 for name in pruning["zeroed"]}
    asked = []

    def ask(model, _):
        weights = dict(model.named_parameters())
        asked.append(all((weights[name][mask] == 0).all() for name, mask in zeros.items()))

    handle = pruned.denoiser.register_forward_pre_hook(ask)
    config = settings(recovery, {"steps": 3, "batch_size": 4, "learning_rate": 3e-3})
    tuned, notes = compress(recovery, pruned, around, config)
    handle.remove()
    assert len(asked) == 3 and all(asked)
    after = state(tuned)
    for name, mask in zeros.items():
        assert mask.any(), name
        assert (after[name][mask] == 0).all(), name
        assert (after[name][~mask] != start[name][~mask]).any(), f"{name} did not learn"
        if sparse == "runs":
            kept = (as_matrix(after[name]).reshape(-1, 4) != 0).sum(dim=1)
            assert (kept == 2).all(), name
    assert notes["masked_tensors"] == len(zeros) > 0


def test_finetune_lowers_the_loss_under_its_masks(base):
    around = tiny.task(base)
    method, changes = SPARSE["weights"]
    sparse, _ = compress(method, base.private_copy(), around, settings(method, changes))
    config = settings("finetune", {"steps": 40, "batch_size": 16, "learning_rate": 3e-3})
    _, notes = compress("finetune", sparse, around, config)
    assert sum(notes["losses"][-5:]) < sum(notes["losses"][:5])


def test_every_config_is_frozen_with_defaults():
    for method in {method for method, _ in CASES.values()}:
        config = settings(method, {})
        assert dataclasses.is_dataclass(config)
        for field in dataclasses.fields(config):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(config, field.name, None)
