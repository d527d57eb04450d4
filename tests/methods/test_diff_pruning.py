"""Gradient accumulation, the stop rule, and the choice of channels."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from torch import nn

from methods import diff_pruning
from methods.diff_pruning import SCORES
from methods.harness import zoo
from methods.harness.channels import channel_groups
from methods.harness.checkpoint import load_base, load_pruned, save_pruned
from methods.harness.gradients import accumulate_gradients
from methods.harness.pipeline import Examples, Pipeline
from methods.harness.sample import sample
from methods.harness.scores import choose, overlap
from methods.harness.surgery import ratio_widths
from tests.harness import tiny


class Curve(nn.Module):
    """A denoiser that misses the noise by exactly sqrt(curve[t]) times its one weight."""

    def __init__(self, scheduler, curve):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.alpha = scheduler.alphas_cumprod.sqrt()
        self.sigma = (1 - scheduler.alphas_cumprod).sqrt()
        self.curve = torch.tensor(curve)
        self.kind = scheduler.config.prediction_type

    def forward(self, x_t, timestep, return_dict=False):
        alpha, sigma, curve = (
            part[timestep][:, None, None, None] for part in (self.alpha, self.sigma, self.curve)
        )
        noise = x_t / sigma + curve.sqrt() * self.weight  # x0 is zero in these tests
        clean = (x_t - sigma * noise) / alpha
        answers = {"epsilon": noise, "v_prediction": alpha * noise - sigma * clean, "sample": clean}
        return (answers[self.kind],)


def accumulate(
    curve, threshold, include_last, stride=1, images_per_pass=2, prediction_type="epsilon"
):
    pipe = tiny.pipeline()
    pipe.scheduler.register_to_config(prediction_type=prediction_type)
    around = tiny.task(pipe)
    model = Curve(pipe.scheduler, curve + [0.0] * (1000 - len(curve)))
    examples = Examples(torch.zeros(2, 1, 8, 8), None, {})
    noise = torch.randn(examples.x0.shape, generator=torch.Generator().manual_seed(0))
    losses = accumulate_gradients(
        model,
        around,
        examples,
        noise,
        threshold=threshold,
        include_last=include_last,
        stride=stride,
        images_per_pass=images_per_pass,
    )
    return losses, model.weight.grad


# dL/dw of (miss * w)^2 at w = 1 is 2 * curve[t].
CURVE = [0.8, 1.0, 0.5, 0.2, 0.09, 0.3, 0.01]


def test_the_step_that_falls_under_is_accumulated_in_one_program_only():
    losses, grad = accumulate(CURVE, 0.1, include_last=True)
    assert losses == pytest.approx(CURVE[:5], abs=1e-5)
    assert float(grad) == pytest.approx(2 * sum(CURVE[:5]), abs=1e-4)
    losses, grad = accumulate(CURVE, 0.1, include_last=False)
    assert losses == pytest.approx(CURVE[:5], abs=1e-5)
    assert float(grad) == pytest.approx(2 * sum(CURVE[:4]), abs=1e-4)


def test_the_threshold_is_relative_to_the_running_maximum():
    losses, _ = accumulate([0.1, 1.0, 0.04, 0.06], 0.05, include_last=True)
    assert len(losses) == 3, "0.04 is under 0.05 of the maximum 1.0"
    losses, _ = accumulate([0.1, 0.04, 0.004, 1.0], 0.05, include_last=True)
    assert len(losses) == 3, "before the maximum comes, the maximum so far counts"


def test_threshold_zero_takes_all_timesteps():
    losses, _ = accumulate([1.0] * 1000, 0.0, include_last=True, stride=100)
    assert len(losses) == 10


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_the_stop_is_judged_by_the_error_of_the_noise_whatever_is_predicted(prediction_type):
    """The curve is the error of the noise; of v it would be curve / alpha^2."""
    curve = [0.8, 1.0, *[0.5] * 598, 0.02]
    expected = accumulate(curve, 0.05, True, stride=100)
    losses, grad = accumulate(curve, 0.05, True, stride=100, prediction_type=prediction_type)
    assert len(losses) == 7
    assert losses == pytest.approx(expected[0], rel=1e-3)
    assert float(grad) == pytest.approx(float(expected[1]), rel=1e-3)


def doubled(examples):
    """In float64, so that gradients that are exactly zero (biases of keys) are so in effect."""
    condition = {
        name: value.double() if value.is_floating_point() else value
        for name, value in examples.condition.items()
    }
    return Examples(examples.x0.double(), examples.rows, condition)


def test_gradients_are_the_sum_over_timesteps():
    pipe = tiny.pipeline()
    around = tiny.task(pipe)
    model = copy.deepcopy(pipe.denoiser).double()
    examples = doubled(around.calibration_batch(4))
    x0 = examples.x0
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2)).double()
    losses = accumulate_gradients(model, around, examples, noise, threshold=0.0, stride=250)
    found = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    total = torch.zeros((), dtype=torch.double)
    for t in (0, 250, 500, 750):
        steps = torch.full((4,), t)
        x_t = pipe.scheduler.add_noise(x0, noise, steps)
        total = total + nn.functional.mse_loss(model(x_t, steps).sample, noise)
    total.backward()
    assert sum(losses) == pytest.approx(float(total.detach()), rel=1e-6)
    for name, parameter in model.named_parameters():
        # Losses are taken in float32, whatever the model computes in.
        scale = parameter.grad.abs().max().clamp_min(1e-9)
        assert (found[name] - parameter.grad).abs().max() <= 1e-5 * scale, name


def test_the_loss_of_the_papers_code_sums_over_pixels():
    """64 pixels: loss and gradient are 64 times those of the mean, the stop is the same."""
    pipe = tiny.pipeline()
    around = tiny.task(pipe)
    examples = around.calibration_batch(2)
    noise = torch.randn(examples.x0.shape, generator=torch.Generator().manual_seed(0))
    found = []
    for sum_pixels in (False, True):
        model = copy.deepcopy(pipe.denoiser)
        losses = accumulate_gradients(
            model, around, examples, noise, threshold=0.3, stride=200, sum_pixels=sum_pixels
        )
        found.append((losses, model.conv_in.weight.grad))
    assert len(found[0][0]) == len(found[1][0])
    assert found[1][0] == pytest.approx([64 * loss for loss in found[0][0]], rel=1e-5)
    gap = (found[1][1] - 64 * found[0][1]).abs().max()
    assert gap <= 1e-4 * found[1][1].abs().max()


@pytest.mark.parametrize("images_per_pass", [1, 2, 4, 6, 7, 1000])
@pytest.mark.parametrize("include_last", [True, False])
@pytest.mark.parametrize("curve", [CURVE, [1.0, 0.01], [0.1, 1.0, 0.04, 0.06]])
def test_the_stop_does_not_depend_on_how_many_timesteps_share_a_pass(
    curve, include_last, images_per_pass
):
    """Two images, so 1 to 500 timesteps at once; the stop falls inside a pass and at its end."""
    expected = accumulate(curve, 0.1, include_last, images_per_pass=2)
    losses, grad = accumulate(curve, 0.1, include_last, images_per_pass=images_per_pass)
    assert losses == pytest.approx(expected[0], abs=1e-6)
    assert float(grad) == pytest.approx(float(expected[1]), abs=1e-6)


@pytest.mark.parametrize("kind", ["unet", "t2i", "dit"])
@pytest.mark.parametrize("sum_pixels", [False, True])
def test_timesteps_in_one_pass_leave_the_gradients_of_single_ones(kind, sum_pixels):
    pipe = tiny.pipeline() if kind == "unet" else tiny.conditional(kind)
    around = tiny.task(pipe)
    examples = around.calibration_batch(3)
    noise = torch.randn(examples.x0.shape, generator=torch.Generator().manual_seed(2))
    found = []
    for images_per_pass in (3, 8, 64):  # 1, 2 and 21 of the timesteps at once
        model = copy.deepcopy(pipe.denoiser).double()
        calls = []
        handle = model.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        losses = accumulate_gradients(
            model,
            around,
            doubled(examples),
            noise.double(),
            threshold=0.0,
            stride=around.timesteps // 5,
            sum_pixels=sum_pixels,
            images_per_pass=images_per_pass,
        )
        handle.remove()
        found.append((losses, {n: p.grad for n, p in model.named_parameters()}, len(calls)))
    assert [calls for _, _, calls in found] == [5, 3, 1]
    for losses, grads, _ in found[1:]:
        # Losses are taken in float32, whatever the model computes in.
        assert losses == pytest.approx(found[0][0], rel=1e-6)
        for name, grad in grads.items():
            alone = found[0][1][name]
            if alone is None:
                assert grad is None
                continue
            assert (grad - alone).abs().max() <= 1e-5 * alone.abs().max().clamp_min(1e-9), name


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_a_senseless_threshold_is_refused(threshold):
    with pytest.raises(ValueError, match="threshold must be a number"):
        accumulate(CURVE, threshold, include_last=True)


@pytest.mark.parametrize("variant", ["diffusers", "ddpm_exp"])
def test_notes_tell_the_stop_and_the_kept_channels(variant):
    pipe = tiny.pipeline("one_head")
    config = diff_pruning.Config(ratio=0.5, batch_size=4, stride=200, variant=variant)
    pruned, notes = diff_pruning.compress(pipe.private_copy(), tiny.task(pipe), config)
    assert isinstance(pruned, Pipeline)
    assert notes["stop"] == 200 * (len(notes["losses"]) - 1)
    assert notes["keep"] == pruned.edits[0]["keep"]


def test_a_variant_is_its_programs_loss_stop_and_score():
    """Put together by hand for all eight mixtures, of which two are a program."""
    pipe = tiny.pipeline("one_head")
    around = tiny.task(pipe)
    settings = {"ratio": 0.5, "batch_size": 4, "stride": 150, "threshold": 0.97}
    widths = ratio_widths(channel_groups(pipe.denoiser), 0.5)
    examples = around.calibration_batch(4)
    noise = torch.randn(examples.x0.shape, generator=around.generator("diff_pruning/noise"))
    mixtures = {}
    for include_last, sum_pixels, score in product((True, False), (True, False), SCORES):
        model = copy.deepcopy(pipe.denoiser)
        losses = accumulate_gradients(
            model,
            around,
            examples,
            noise,
            threshold=0.97,
            stride=150,
            include_last=include_last,
            sum_pixels=sum_pixels,
        )
        keep = choose(model, SCORES[score], widths, order="sequential")
        mixtures[include_last, sum_pixels, score] = (losses, keep)
    programs = {"diffusers": (True, False), "ddpm_exp": (False, True)}
    for variant, (include_last, sum_pixels) in programs.items():
        config = diff_pruning.Config(variant=variant, **settings)
        _, notes = diff_pruning.compress(pipe.private_copy(), around, config)
        mine = mixtures.pop((include_last, sum_pixels, variant))
        assert (notes["losses"], notes["keep"]) == mine
        assert 1 < len(notes["losses"]) < 7, "the stop has to come, and after something"
        assert mine not in mixtures.values(), "another mixture would do as well"


def test_planted_redundancy_is_found():
    """Channels whose rows and columns are all but zero have no Taylor term and must go."""
    pipe = tiny.pipeline("many_heads")
    dead = {}
    with torch.no_grad():
        for group in channel_groups(pipe.denoiser):
            if not group.name.endswith("conv1"):
                continue
            per = group.size // group.partitions
            dead[group.name] = [p * per for p in range(group.partitions)]
            for slot in group.slots:
                layer = pipe.denoiser.get_submodule(slot.module)
                rows = [slot.start + i for i in dead[group.name]]
                if slot.axis == "in":
                    layer.weight[:, rows] *= 1e-6
                elif slot.axis == "out":
                    layer.weight[rows] *= 1e-6
    config = diff_pruning.Config(ratio=0.26, batch_size=4, stride=250)
    _, notes = diff_pruning.compress(pipe.private_copy(), tiny.task(pipe), config)
    for name, planted in dead.items():
        if name in notes["keep"]:
            assert not set(planted) & set(notes["keep"][name]), name
    assert any(name in notes["keep"] for name in dead)


def test_bf16_moves_fewer_channels_than_other_noise_does():
    """On the shipped U-Net; other images and noise are how far a selection is known at all."""
    pipe = load_base("fashion_unet")
    keeps = []
    for precision, seed in (("fp32", 0), ("bf16", 0), ("fp32", 1)):
        config = diff_pruning.Config(
            macs=0.5, batch_size=8, stride=125, threshold=0.0, precision=precision
        )
        _, notes = diff_pruning.compress(pipe.private_copy(), tiny.task(pipe, seed), config)
        keeps.append(notes["keep"])
    full, bf16, redrawn = keeps
    assert overlap(bf16, full) > 0.95 > overlap(redrawn, full)


@pytest.mark.slow
def test_the_whole_path_on_ddpm_cifar10(tmp_path):
    """The published size from the published ratio: score, cut, save, reload, sample."""
    torch.manual_seed(0)
    dense = zoo.ARCHITECTURES["ddpm_cifar10"].build().eval()
    assert sum(p.numel() for p in dense.parameters()) == 35_746_307
    pipe = Pipeline(dense, zoo.ddpm_scheduler(), steps=3)
    around = tiny.task(pipe)
    config = diff_pruning.Config(ratio=0.3, batch_size=2, stride=250, threshold=0.0)
    pruned, notes = diff_pruning.compress(pipe.private_copy(), around, config)
    assert sum(p.numel() for p in pruned.denoiser.parameters()) == 19_851_157
    assert len(notes["losses"]) == 4

    save_pruned(pruned, tmp_path / "model", "ddpm_cifar10", notes)
    back = load_pruned(tmp_path / "model")
    before, after = pruned.denoiser.state_dict(), back.denoiser.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)

    noise = around.noise(2, "test")
    images = sample(pruned, noise, 3, precision="fp32")
    assert images.shape == (2, 3, 32, 32) and images.std() > 0
    assert torch.equal(sample(back, noise, 3, precision="fp32"), images)
    assert not torch.equal(sample(pipe, noise, 3, precision="fp32"), images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratio": 1.7}, "ratio must be"),
        ({"ratio": 0.3, "macs": 0.5}, "set either ratio"),
        ({"variant": "paper"}, "variant must be one of"),
        ({"stride": 0}, "stride must be"),
        ({"images_per_pass": 0}, "images_per_pass must be at least 1"),
        ({"batch_size": 0}, "batch_size must lie in"),
        ({"batch_size": 65}, "batch_size must lie in"),
        ({"order": "none"}, "order must be one of"),
        ({"rule": "none"}, "rule must be one of"),
    ],
)
def test_bad_settings_are_named(change, message):
    pipe = tiny.pipeline()
    config = diff_pruning.Config(**({"batch_size": 2, "stride": 500} | change))
    with pytest.raises(ValueError, match=message):
        diff_pruning.compress(pipe.private_copy(), tiny.task(pipe), config)
