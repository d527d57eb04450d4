"""Every cut equals masking in the dense model; requests are met or refused."""

from __future__ import annotations

import copy
import math
import sys

import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.harness import depth, surgery, zoo
from methods.harness.channels import ChannelGroup, backward_order, channel_groups
from methods.harness.surgery import cut_channels, macs_widths, ratio_widths, select
from methods.harness.width import width_layers

from . import tiny

RULES = ("within", "whole")


def random_keep(model, ratio, rule, seed):
    draw = torch.Generator().manual_seed(seed)
    groups = channel_groups(model)
    widths = ratio_widths(groups, ratio, rule)
    return {
        g.name: select(g, torch.rand(g.size, generator=draw), widths[g.name], rule)
        for g in groups
        if widths[g.name] < g.size
    }


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", tiny.CONFIGS)
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_a_cut_model_equals_the_masked_dense_model(name, rule, ratio):
    model = tiny.unet(name)
    keep = random_keep(model, ratio, rule, seed=int(100 * ratio))
    assert keep, "the request must remove something"
    reference = tiny.masked(model, keep, rule)
    cut = copy.deepcopy(model)
    cut_channels(cut, keep, rule)
    x, t = tiny.inputs(model)
    with torch.no_grad():
        expected, found = reference(x, t).sample, cut(x, t).sample
        dense = model(x, t).sample
    assert (found - expected).abs().max() <= 1e-5
    assert (found - dense).abs().max() > 1e-3, "a cut that changes nothing tests nothing"


@pytest.mark.parametrize("rule", RULES)
def test_each_group_can_be_cut_alone(rule):
    model = tiny.unet("many_heads")
    x, t = tiny.inputs(model)
    tried = 0
    for group in channel_groups(model):
        width = ratio_widths([group], 0.5, rule)[group.name]
        if width == group.size:
            continue
        tried += 1
        scores = torch.rand(group.size, generator=torch.Generator().manual_seed(tried))
        keep = {group.name: select(group, scores, width, rule)}
        cut = copy.deepcopy(model)
        cut_channels(cut, keep, rule)
        with torch.no_grad():
            gap = (cut(x, t).sample - tiny.masked(model, keep, rule)(x, t).sample).abs().max()
        assert gap <= 1e-5, group.name
    assert tried >= 10


@pytest.mark.parametrize("rule", RULES)
def test_nothing_removed_is_the_identity(rule):
    model = tiny.unet()
    cut = copy.deepcopy(model)
    cut_channels(cut, {}, rule)
    cut_channels(cut, {g.name: list(range(g.size)) for g in channel_groups(cut)}, rule)
    for (name, a), (_, b) in zip(model.named_parameters(), cut.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_widths_follow_the_official_arithmetic():
    """At 32 groups ratio 0.3 takes 32 of 128 (not 38), 64 of 256; without groups int() rules."""
    with torch.device("meta"):
        groups = channel_groups(zoo.ARCHITECTURES["ddpm_cifar10"].build())
    widths = ratio_widths(groups, 0.3)
    assert widths["conv_in"] == 96
    assert widths["down_blocks.1.resnets.0.conv1"] == 192
    assert widths["time_embedding.linear_1"] == 358  # 512 - (512 - int(358.4))
    assert widths["mid_block.attentions.0.to_q"] == 179
    assert widths["up_blocks.0.resnets.2.conv2"] == 179  # meets no GroupNorm


def test_ddpm_cifar10_at_ratio_03_has_the_published_size():
    """Diff-Pruning, Table 1: 35.7M/6.1G -> 19.8M/3.4G; to the digit 19,851,157."""
    model, inputs = zoo.ARCHITECTURES["ddpm_cifar10"].on_meta()
    cost = surgery.MacsModel.of(model, inputs)
    assert sum(p.numel() for p in model.parameters()) == 35_746_307
    assert 6.05e9 < cost.macs({}) < 6.07e9
    widths = ratio_widths(cost.groups, 0.3)
    keep = {g.name: select(g, torch.zeros(g.size), widths[g.name]) for g in cost.groups}
    cut_channels(model, keep, "within")
    assert sum(p.numel() for p in model.parameters()) == 19_851_157
    assert cost.macs(widths) == surgery.MacsModel.of(model, inputs).macs({})
    assert 3.38e9 < cost.macs(widths) < 3.40e9


def test_half_the_decoder_of_stable_diffusion_has_the_published_size():
    """SnapFusion prints 50M -> 13M for its image decoder; to the digit 49,490,179 -> 12,387,459."""
    with torch.device("meta"):
        autoencoder = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
    sizes = [sum(p.numel() for p in autoencoder.decoder.parameters())]
    widths = surgery.decoder_widths(autoencoder, 0.5)
    keep = {
        group.name: select(group, torch.zeros(group.size), widths[group.name])
        for group in channel_groups(autoencoder)
    }
    cut_channels(autoencoder, keep, "within")
    sizes.append(sum(p.numel() for p in autoencoder.decoder.parameters()))
    assert sizes == [49_490_179, 12_387_459]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("target", [1.0, 0.75, 0.5, 0.25])
def test_a_macs_target_is_met_within_two_points(rule, target):
    model, inputs = zoo.ARCHITECTURES["fashion_unet"].on_meta()
    cost = surgery.MacsModel.of(model, inputs)
    dense = cost.macs({})
    widths = macs_widths(model, inputs, target, rule)
    assert abs(cost.macs(widths) / dense - target) <= 0.02
    keep = {g.name: select(g, torch.zeros(g.size), widths[g.name], rule) for g in cost.groups}
    cut_channels(model, keep, rule)
    assert surgery.MacsModel.of(model, inputs).macs({}) == cost.macs(widths)


def test_a_macs_target_out_of_reach_is_refused_with_the_nearest():
    """Whole heads and groups leave the residual stream alone, so little is out of reach."""
    model = tiny.unet("many_heads")
    inputs = tiny.task(tiny.pipeline("many_heads")).example_inputs()
    with pytest.raises(ValueError, match=r"macs=0.02 cannot be met .* nearest is 0\.[1-9]"):
        macs_widths(model, inputs, 0.02, "whole")


@pytest.mark.parametrize("value", [1.7, 1.0, -0.1, math.nan, math.inf, "0.3", None])
def test_a_senseless_ratio_is_refused(value):
    with pytest.raises(ValueError, match=r"ratio must be a number in \[0, 1\)"):
        ratio_widths(channel_groups(tiny.unet()), value)


@pytest.mark.parametrize("value", [1.7, 0.0, -0.1, math.nan, math.inf, "0.5"])
def test_a_senseless_macs_target_is_refused(value):
    model, inputs = zoo.ARCHITECTURES["fashion_unet"].on_meta()
    with pytest.raises(ValueError, match=r"macs must be a number in \(0, 1\]"):
        macs_widths(model, inputs, value)


def test_macs_are_counted_by_hand():
    """One 3x3 convolution 2->4 on 5x5 and one linear layer in front of it, by arithmetic."""
    model, inputs = zoo.ARCHITECTURES["fashion_unet"].on_meta()
    cost = surgery.MacsModel.of(model, inputs)
    assert cost.per_weight["conv_in"] * 1 * 32 == 28 * 28 * 9 * 1 * 32
    assert cost.per_weight["down_blocks.0.downsamplers.0.conv"] == 14 * 14 * 9
    assert cost.per_weight["down_blocks.2.attentions.0.to_q"] == 7 * 7
    assert cost.per_weight["time_embedding.linear_2"] == 1


def test_select_keeps_the_highest_in_every_partition():
    group = ChannelGroup("g", 8, (), partitions=2, heads=1, whole_unit=4)
    scores = torch.tensor([5.0, 1.0, 3.0, 2.0, 0.1, 0.4, 0.3, 0.2])
    assert select(group, scores, 4, "within") == [0, 2, 5, 6]
    assert select(group, scores, 4, "whole") == [0, 1, 2, 3]
    assert select(group, torch.zeros(8), 6, "within") == [1, 2, 3, 5, 6, 7], "ties: lower goes"


@pytest.mark.parametrize("width", [0, 3, 9])
def test_select_refuses_widths_that_do_not_fit(width):
    group = ChannelGroup("g", 8, (), partitions=2, heads=1, whole_unit=0)
    with pytest.raises(ValueError, match="does not fit"):
        select(group, torch.zeros(8), width, "within")


def test_select_refuses_scores_that_are_not_finite():
    group = ChannelGroup("g", 2, (), partitions=1, heads=1, whole_unit=1)
    with pytest.raises(ValueError, match="not finite"):
        select(group, torch.tensor([1.0, math.nan]), 1)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 8).flatmap(
        lambda g: st.tuples(st.just(g), st.integers(1, 8), st.floats(0, 0.999), st.integers(0, 99))
    )
)
def test_selection_is_balanced_and_as_wide_as_asked(case):
    partitions, per, ratio, seed = case
    group = ChannelGroup("g", partitions * per, (), partitions, 1, 0)
    width = ratio_widths([group], ratio)["g"]
    scores = torch.rand(group.size, generator=torch.Generator().manual_seed(seed))
    kept = select(group, scores, width)
    assert len(kept) == width
    counts = {sum(i // per == part for i in kept) for part in range(partitions)}
    assert len(counts) == 1
    assert group.size - width <= group.size - int(group.size * (1 - ratio))


BAD_KEEPS = {
    "unsorted": [3, 1],
    "repeated": [1, 1],
    "too_high": [0, 99],
    "negative": [-1, 2],
    "empty": [],
    "text": ["0"],
    "bool": [True],
    "torn": [0, 1, 2],
}


@pytest.mark.parametrize("case", BAD_KEEPS)
@pytest.mark.parametrize("rule", RULES)
def test_a_bad_selection_is_refused_and_nothing_is_cut(case, rule):
    model = tiny.unet()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"conv_in|norm"):
        cut_channels(model, {"conv_in": BAD_KEEPS[case]}, rule)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_unknown_groups_rules_and_models_are_named():
    with pytest.raises(ValueError, match="unknown channel group 'nowhere'"):
        cut_channels(tiny.unet(), {"nowhere": [0]}, "within")
    with pytest.raises(ValueError, match="rule must be one of"):
        cut_channels(tiny.unet(), {}, "sideways")
    with pytest.raises(ValueError, match="decoder, not Linear"):
        channel_groups(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("dit", "transformer_blocks.0"),
        ("dit", "transformer_blocks.2"),
        ("t2i", "down_blocks.1.attentions.0"),
        ("t2i", "down_blocks.1.attentions.0.transformer_blocks.0"),
        ("t2i", "mid_block.resnets.0"),
    ],
)
def test_a_repeated_layer_is_refused_and_a_removed_one_passed_over(kind, name):
    """A repeated layer has channels of its own, which would stay as they are without a word."""
    pipe = tiny.conditional(kind)
    dense = channel_groups(pipe.denoiser)
    removed = depth.drop(pipe.private_copy(), [name]).denoiser
    assert len(channel_groups(removed)) < len(dense)
    grown = depth.repeat(pipe, [name]).denoiser
    with pytest.raises(ValueError, match=rf"^{name}: .*described"):
        channel_groups(grown)
    with pytest.raises(ValueError, match=rf"^{name}: .*described"):
        width_layers(grown)


def test_heads_follow_the_rule():
    model = tiny.unet("many_heads")
    name = "mid_block.attentions.0.to_q"
    whole, within = copy.deepcopy(model), copy.deepcopy(model)
    cut_channels(whole, {name: list(range(8, 64))}, "whole")
    assert whole.mid_block.attentions[0].heads == 7
    cut_channels(within, {name: [i for i in range(64) if i % 8 >= 4]}, "within")
    assert within.mid_block.attentions[0].heads == 8
    assert tiny.head_scale_is_kept(model.mid_block.attentions[0], within.mid_block.attentions[0])


def test_gradients_are_cut_with_their_weights():
    model = tiny.unet()
    x, t = tiny.inputs(model)
    model(x, t).sample.square().mean().backward()
    full = model.conv_in.weight.grad.clone()
    keep = random_keep(model, 0.5, "within", seed=3)
    cut_channels(model, keep, "within")
    assert torch.equal(model.conv_in.weight.grad, full[keep["conv_in"]])


def test_backward_order_names_every_group_once():
    for name in tiny.CONFIGS:
        model = tiny.unet(name)
        assert sorted(backward_order(model)) == sorted(g.name for g in channel_groups(model))


def test_groups_and_order_agree_with_torch_pruning():
    """An independent tracer (autograd graph) finds the same groups in the same order."""
    tp = pytest.importorskip("torch_pruning")
    model = tiny.unet("one_head")
    x, t = tiny.inputs(model, batch=1)
    graph = tp.DependencyGraph().build_dependency(model, {"sample": x, "timestep": t[:1]})
    names = {module: name for name, module in model.named_modules()}
    mine = {
        slot.module: group.name
        for group in channel_groups(model)
        for slot in group.slots
        if slot.axis == "out"
    }
    order = []
    for found in graph.get_all_groups(ignored_layers=[model.conv_out]):
        producers = {
            names[dependency.target.module]
            for dependency, _ in found
            if graph.is_out_channel_pruning_fn(dependency.handler)
            and isinstance(dependency.target.module, torch.nn.Conv2d | torch.nn.Linear)
        }
        groups = {mine[name] for name in producers}
        assert len(groups) == 1
        (group,) = groups
        assert producers == {name for name, owner in mine.items() if owner == group}
        order.append(group)
    assert tuple(order) == backward_order(model)
    assert "torch_pruning" in sys.modules
