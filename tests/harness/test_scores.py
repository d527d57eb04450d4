"""Group scores against loops over single weights, and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from methods import diff_pruning, magnitude, taylor
from methods.harness.channels import channel_groups
from methods.harness.denoise import predict
from methods.harness.scores import GroupScore, chance_overlap, choose, overlap
from methods.harness.surgery import ratio_widths

from . import tiny


def tensors(model):
    weights = {
        name: module.weight.detach()
        for name, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), nn.Parameter)
    }
    grads = {
        name: model.get_submodule(name).weight.grad
        for name in weights
        if model.get_submodule(name).weight.grad is not None
    }
    return weights, grads


def with_gradients(name="many_heads", seed=0):
    model = tiny.unet(name, seed)
    x, t = tiny.inputs(model)
    model(x, t).sample.square().mean().backward()
    return model


def slices(model, group, channel):
    """Every (w, g) pair of tensors that goes with one channel: {member: [slice, ...]}."""
    found = {}
    for slot in group.slots:
        layer = model.get_submodule(slot.module)
        index = slot.start + channel
        pick = (slice(None), index) if slot.axis == "in" else (index,)
        pair = (layer.weight.detach()[pick], layer.weight.grad[pick])
        found.setdefault((slot.module, slot.axis), []).append(pair)
    return found


@pytest.mark.parametrize("name", ["one_head", "many_heads"])
def test_diffusers_variant_equals_a_loop_over_slices(name):
    model = with_gradients(name)
    weights, grads = tensors(model)
    doubled = 0
    for group in channel_groups(model):
        expected = []
        for channel in range(group.size):
            members = [
                sum((w * g).abs().sum() for w, g in pairs)
                for (_, axis), pairs in slices(model, group, channel).items()
                if axis != "norm"
            ]
            expected.append(sum(members) / len(members))
        expected = torch.stack(expected)
        found = diff_pruning.SCORES["diffusers"](group, weights, grads)
        assert (found - expected / expected.mean()).abs().max() <= 1e-5, group.name
        doubled += any(len(starts) > 1 for starts in group.members.values())
    assert doubled, "no group enters one concatenation twice: the test misses that case"


@pytest.mark.parametrize("name", ["one_head", "many_heads"])
def test_ddpm_exp_variant_equals_a_loop_over_slices(name):
    model = with_gradients(name)
    weights, grads = tensors(model)
    for group in channel_groups(model):
        expected = []
        for channel in range(group.size):
            total = torch.zeros(())
            for (_, axis), pairs in slices(model, group, channel).items():
                if len(pairs) > 1:
                    continue
                for w, g in pairs:
                    total = total + ((w * g).abs() if axis == "norm" else (w * g).square().sum())
            expected.append(total)
        expected = torch.stack(expected)
        found = diff_pruning.SCORES["ddpm_exp"](group, weights, grads)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), group.name


@pytest.mark.parametrize(
    ("score", "of_slice"),
    [
        (taylor.SCORE, lambda w, g: abs(float((w * g).sum()))),
        (magnitude.SCORES[1], lambda w, g: float(w.abs().sum())),
        (magnitude.SCORES[2], lambda w, g: float(w.square().sum())),
    ],
    ids=["taylor", "l1", "l2"],
)
def test_the_scripts_other_criteria_equal_a_loop_over_slices(score, of_slice):
    """Signs cancel inside a slice, never between the halves of a tensor that holds it twice."""
    model = with_gradients("many_heads")
    weights, grads = tensors(model)
    for group in channel_groups(model):
        expected = []
        for channel in range(group.size):
            members = [
                sum(of_slice(w, g) for w, g in pairs)
                for (_, axis), pairs in slices(model, group, channel).items()
                if axis != "norm"
            ]
            expected.append(sum(members) / len(members))
        expected = torch.tensor(expected)
        found = score(group, weights, grads)
        assert (found - expected / expected.mean()).abs().max() <= 1e-5, group.name


def test_value_and_gate_of_a_neuron_count_in_both_programs():
    """Only what reads a group twice is dropped, never the layer that gives both halves."""
    pipe = tiny.conditional("t2i")
    batch = next(tiny.task(pipe).training_batches(2))
    model = pipe.denoiser
    predict(model, batch.x_t, batch.t, batch.condition).square().mean().backward()
    weights, grads = tensors(model)
    gated = 0
    for group in channel_groups(model):
        if not group.name.endswith(".net.0.proj"):
            continue
        gated += 1
        terms = [
            weights[name].double() * grads[name].double()
            for name in (group.name, group.name.removesuffix(".0.proj") + ".2")
        ]
        value, gate = terms[0].split(group.size)
        read = terms[1].T
        expected = sum(part.square().sum(dim=1) for part in (value, gate, read))
        found = diff_pruning.SCORES["ddpm_exp"](group, weights, grads)
        assert (found - expected).abs().max() <= 1e-5 * expected.max(), group.name
        expected = (sum(part.abs().sum(dim=1) for part in (value, gate, read))) / 2
        found = diff_pruning.SCORES["diffusers"](group, weights, grads)
        assert (found - expected / expected.mean()).abs().max() <= 1e-5, group.name
    assert gated


@pytest.mark.parametrize("name", ["one_head", "many_heads"])
def test_every_criterion_is_torch_prunings(name):
    """On its own groups, member for member: taylor, the sum of |w g|, L1 and L2."""
    tp = pytest.importorskip("torch_pruning")
    model = with_gradients(name)
    weights, grads = tensors(model)
    x, t = tiny.inputs(model)
    graph = tp.DependencyGraph().build_dependency(model, {"sample": x, "timestep": t})
    criteria = [
        (tp.importance.GroupTaylorImportance(multivariable=True), taylor.SCORE),
        (tp.importance.GroupTaylorImportance(), diff_pruning.SCORES["diffusers"]),
        (tp.importance.GroupMagnitudeImportance(p=1), magnitude.SCORES[1]),
        (tp.importance.GroupMagnitudeImportance(p=2), magnitude.SCORES[2]),
    ]
    for group in channel_groups(model):
        layer = model.get_submodule(group.name)
        is_conv = isinstance(layer, nn.Conv2d)
        prune = tp.prune_conv_out_channels if is_conv else tp.prune_linear_out_channels
        whole = graph.get_pruning_group(layer, prune, idxs=list(range(group.size)))
        for theirs, ours in criteria:
            expected, found = theirs(whole), ours(group, weights, grads)
            gap = (expected / expected.mean() - found / found.mean()).abs().max()
            assert gap <= 1e-5, group.name


def test_scores_by_hand():
    """Two linear layers 2 -> 2 -> 1: channel i owns row i of the first, column i of the second."""

    class Group:
        name, size = "a", 2
        members = {("a", "out"): (0,), ("b", "in"): (0,)}  # noqa: RUF012

    weights = {"a": torch.tensor([[1.0, -2.0], [3.0, 0.5]]), "b": torch.tensor([[2.0, -1.0]])}
    grads = {"a": torch.tensor([[1.0, 1.0], [-1.0, 2.0]]), "b": torch.tensor([[0.5, 4.0]])}
    taylor = GroupScore(lambda w, g: (w * g).abs().sum(dim=1))
    # a: |1|+|-2| = 3, |-3|+|1| = 4; b: |1| = 1, |-4| = 4; means 2 and 4, divided by their mean 3
    assert taylor(Group, weights, grads).tolist() == pytest.approx([2 / 3, 4 / 3])
    signed = GroupScore(lambda w, g: (w * g).sum(dim=1).abs(), reduction="sum")
    # a: |1-2| = 1, |-3+1| = 2; b: 1, 4
    assert signed(Group, weights, grads).tolist() == [2.0, 6.0]
    squares = GroupScore(lambda w, _: w.square().sum(dim=1), reduction="sum")
    assert squares(Group, weights, {}).tolist() == [5.0 + 4.0, 9.25 + 1.0]


def test_sequential_and_one_shot_choose_differently_but_as_many():
    model = with_gradients("many_heads")
    widths = ratio_widths(channel_groups(model), 0.5)
    score = diff_pruning.SCORES["diffusers"]
    sequential = choose(model, score, widths, order="sequential")
    one_shot = choose(model, score, widths, order="one-shot")
    assert sequential.keys() == one_shot.keys()
    assert all(len(sequential[name]) == len(one_shot[name]) for name in sequential)
    assert sequential != one_shot


def test_sequential_scoring_ignores_what_is_already_cut():
    """Score each group on a model from which the earlier groups were really cut."""
    from methods.harness.channels import backward_order
    from methods.harness.surgery import cut_channels, select

    model = with_gradients("one_head")
    groups = {g.name: g for g in channel_groups(model)}
    widths = ratio_widths(tuple(groups.values()), 0.5)
    score = diff_pruning.SCORES["diffusers"]
    found = choose(model, score, widths, order="sequential")
    for name in backward_order(model):
        if widths[name] == groups[name].size:
            continue
        group = next(g for g in channel_groups(model) if g.name == name)
        # to_q was rescaled by the cut of its own group only, which is scored once.
        kept = select(group, score(group, *tensors(model)), widths[name])
        assert kept == found[name], name
        cut_channels(model, {name: kept}, "within")


def test_unknown_order_is_refused():
    with pytest.raises(ValueError, match="order must be one of"):
        choose(tiny.unet(), GroupScore(lambda w, _: w.sum(dim=1)), {}, order="random")


def test_overlap_by_hand():
    one = {"a": [0, 1, 2], "b": [4]}
    assert overlap(one, one) == 1.0
    assert overlap(one, {"a": [2, 3, 5], "b": [5]}) == 0.25
    with pytest.raises(ValueError, match="equal widths"):
        overlap(one, {"a": [0, 1], "b": [4]})
    with pytest.raises(ValueError, match="nothing is cut"):
        overlap({}, {})


def test_chance_overlap_is_what_random_selections_share():
    sizes = {"a": 8, "b": 20}
    expected = chance_overlap(sizes, {"a": list(range(6)), "b": list(range(5))})
    assert expected == (36 / 8 + 25 / 20) / 11
    draw = torch.Generator().manual_seed(0)

    def chosen():
        return {
            "a": torch.randperm(8, generator=draw)[:6].tolist(),
            "b": torch.randperm(20, generator=draw)[:5].tolist(),
        }

    found = [overlap(chosen(), chosen()) for _ in range(2000)]
    assert abs(sum(found) / len(found) - expected) < 0.01
