"""SnapFusion: skipping, the block table, values and their sign, evolution, decoder, costs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

from kb import results
from methods import registry, snapfusion
from methods.__main__ import main
from methods.harness import block_costs, decoder, depth, prompts, zoo
from methods.harness.bases import small_autoencoder
from methods.harness.block_costs import BlockCosts
from methods.harness.checkpoint import load_pruned, read_tensors, save_pruned
from methods.harness.cost import metered
from methods.harness.data import ImageSet, Splits
from methods.harness.denoise import predict
from methods.harness.measure import count_macs
from methods.harness.pipeline import Task
from methods.harness.sample import grid, sample
from methods.harness.train import denoising_loss
from tests.experiments import text_lab
from tests.harness import tiny

SMALL = snapfusion.Config(
    clock="macs", robust_steps=0, between_steps=0, batch_size=4, judged=1, precision="fp32"
)


def macs(model, around):
    return count_macs(model, around.example_inputs()).total


# --- robust training -------------------------------------------------------------------------


def test_every_block_is_left_out_as_often_as_asked():
    names = tuple("abcd")
    loss = snapfusion.RobustLoss(names, 0.15, 0, "draws")
    drawn = [loss.left_out() for _ in range(4000)]
    for name in names:
        assert sum(name in out for out in drawn) / 4000 == pytest.approx(0.15, abs=0.02)
    both = sum("a" in out and "b" in out for out in drawn) / 4000
    assert both == pytest.approx(0.15**2, abs=0.01)  # independent draws
    again = snapfusion.RobustLoss(names, 0.15, 0, "draws")
    assert [again.left_out() for _ in range(50)] == drawn[:50]


@pytest.mark.parametrize("kind", ["t2i", "dit"])
def test_the_robust_loss_is_the_denoising_loss_of_what_is_left(kind):
    pipe = tiny.conditional(kind)
    batch = next(tiny.task(pipe).training_batches(4))
    names = snapfusion.skippable(pipe.denoiser)
    loss = snapfusion.RobustLoss(names, 0.5, 0, "draws")
    out = snapfusion.RobustLoss(names, 0.5, 0, "draws").left_out()
    assert out and len(out) < len(names)
    left = pipe.private_copy()
    depth.drop_units(left.denoiser, out, shortcuts=True)
    with torch.no_grad():
        answer = predict(left.denoiser, batch.x_t, batch.t, batch.condition)
        assert torch.equal(loss(pipe.denoiser, batch), (answer - batch.target).square().mean())


def test_every_resnet_and_transformer_may_be_left_out():
    """Those that change the width keep their shortcut; samplers and ends always run."""
    model = tiny.text_unet()
    names = snapfusion.skippable(model)
    wanted = [n for n, m in model.named_modules() if type(m).__name__ == "ResnetBlock2D"]
    wanted += [n for n, m in model.named_modules() if type(m).__name__ == "Transformer2DModel"]
    assert sorted(names) == sorted(wanted)


def test_nothing_left_out_is_plain_training_and_stages_see_new_batches():
    pipe = tiny.conditional("dit")
    around = tiny.task(pipe)
    seen = []

    def objective(model, batch):
        seen.append(batch.x_t)
        return predict(model, batch.x_t, batch.t, batch.condition).square().mean()

    training = snapfusion.Training(around, SMALL)
    training(pipe.denoiser, objective, 2)
    training(pipe.denoiser, objective, 1)
    expected = around.training_batches(SMALL.batch_size)
    assert all(torch.equal(x, next(expected).x_t) for x in seen) and training.done == 3
    plain = tiny.conditional("dit")
    one = snapfusion.Training(around, replace(SMALL, skip=0.0))
    losses = one.robust(plain.denoiser, 3)
    other = tiny.conditional("dit")
    assert losses == snapfusion.Training(around, SMALL)(other.denoiser, denoising_loss, 3)


# --- block table -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["t2i", "dit"])
def test_counted_costs_are_what_removal_saves(kind):
    pipe = tiny.conditional(kind)
    around = tiny.task(pipe)
    names = [unit.name for unit in depth.removable(pipe.denoiser)]
    table = block_costs.block_costs(pipe.denoiser, names, around.example_inputs(), "macs")
    assert table.total == macs(pipe.denoiser, around)
    for name in names[::3]:  # counting again takes a quarter of a second
        left = depth.drop(pipe.private_copy(), [name])
        assert table.blocks[name] == table.total - macs(left.denoiser, around)


def test_measured_costs_lie_within_the_whole_and_leave_no_hook():
    pipe = tiny.conditional("t2i")
    names = [unit.name for unit in depth.removable(pipe.denoiser)]
    inputs = tiny.task(pipe).example_inputs(2)
    table = block_costs.block_costs(pipe.denoiser, names, inputs, "measured")
    assert table.blocks.keys() == set(names)
    assert all(cost > 0 for cost in table.blocks.values())
    assert sum(table.shares().values()) < 1
    for module in pipe.denoiser.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_measured_costs_are_of_one_thread():
    """A process's time adds up its threads, so only with one is it a latency."""
    threads = []

    class Watched(nn.Module):
        def forward(self, x):
            threads.append(torch.get_num_threads())
            return x

    model = nn.Sequential(nn.Linear(2, 2), Watched())
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        block_costs.block_costs(model, ["0"], {"input": torch.zeros(1, 2)}, "measured")
        assert set(threads) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# --- values and evolution --------------------------------------------------------------------


class Errors:
    """A judge that knows the error of every set of missing blocks."""

    def __init__(self, by_missing):
        self.by_missing = by_missing

    def error(self, model):
        present = {unit.name.replace(".second", "") for unit in depth.removable(model)}
        missing = frozenset(n for n in ALL if n not in present)
        return self.by_missing(missing)


ALL = tuple(f"transformer_blocks.{k}" for k in range(6))
DAMAGE = dict(zip(ALL, (6.0, 1.0, -0.5, 3.0, 2.0, 8.0), strict=True))
COST = dict(zip(ALL, (10.0, 10.0, 10.0, 10.0, 10.0, 40.0), strict=True))


def evolution(config, order=snapfusion.lowest_first):
    pipe = tiny.conditional("dit")
    judge = Errors(lambda missing: 1.0 + sum(DAMAGE[name] for name in missing))
    training = snapfusion.Training(tiny.task(pipe), config)
    table = BlockCosts(100.0, dict(COST))
    found = snapfusion.Evolution(config, judge, table, training, order)  # type: ignore[arg-type]
    return pipe, found


def test_values_by_hand():
    """(Q with - Q without) / (cost with - cost without), Q minus the error: low is removed."""
    pipe, found = evolution(replace(SMALL, latency=0.9))
    values = found.values(pipe.denoiser, depth.removable(pipe.denoiser))
    assert values == pytest.approx([0.6, 0.1, -0.05, 0.3, 0.2, 0.2])


def test_evolution_removes_the_lowest_values_until_the_target_is_met():
    pipe, found = evolution(replace(SMALL, latency=0.75))
    out, notes = found.run(pipe)
    # -0.05, 0.1, then 0.2 of the cheap block before 0.2 of the later, dear one
    assert notes["removed"] == [ALL[2], ALL[1], ALL[4]] and notes["repeated"] == []
    assert found.left == pytest.approx(0.7)
    assert [unit.name for unit in depth.removable(out.denoiser)] == [ALL[0], ALL[3], ALL[5]]
    assert [entry["value"] for entry in notes["values"]] == pytest.approx([-0.05, 0.1, 0.2])


def test_a_group_stops_at_the_target_and_another_order_removes_others():
    pipe, found = evolution(replace(SMALL, latency=0.75, group=5))
    assert len(found.run(pipe)[1]["removed"]) == 3
    config = replace(SMALL, latency=0.75)
    pipe, found = evolution(config, lambda values: snapfusion.lowest_first(values)[::-1])
    assert found.run(pipe)[1]["removed"] == [ALL[0], ALL[3], ALL[5]]


def test_latency_to_spare_goes_to_the_block_of_highest_value():
    """The copy of block 5 would be dearest, so block 0 is repeated; then nothing fits."""
    config = replace(SMALL, latency=0.87, additions=3, group=1)
    pipe, found = evolution(config)
    found.costs.blocks[ALL[2]] = 25.0
    out, notes = found.run(pipe)
    assert notes["removed"] == [ALL[2]] and notes["repeated"] == [ALL[0]]
    assert found.left == pytest.approx(0.85)
    assert [edit["op"] for edit in out.edits] == ["drop", "repeat"]
    assert f"{ALL[0]}.second" in {unit.name for unit in depth.removable(out.denoiser)}


def test_a_model_may_grow_above_its_size():
    pipe, found = evolution(replace(SMALL, latency=1.2, additions=5))
    _, notes = found.run(pipe)
    assert notes["removed"] == [] and len(notes["repeated"]) == 2
    assert found.left == pytest.approx(1.2)


def test_refusals():
    pipe = tiny.conditional("dit")
    around = tiny.task(pipe)
    for changes, message in (
        ({}, "nothing is asked for"),
        ({"latency": 0.01}, "cannot be met"),
        ({"params": 0.01}, "params=0.01 cannot be met"),
        ({"params": 0.9, "additions": 1}, "set latency"),
        ({"latency": 0.7, "robust_steps": 4, "block_steps": 3}, "too few: robust training takes 4"),
        ({"latency": 0.7, "decoder_ratio": 0.5}, "no autoencoder"),
        ({"latency": 0.7, "steps": 6}, "cannot be reached from 16"),
        ({"latency": 0.7, "steps": 16}, "nothing to distil"),
        ({"latency": 0.7, "from_steps": 24, "steps": 12}, "do not contain the 12"),
    ):
        with (
            metered(type(pipe.denoiser)) as spent,
            pytest.raises(ValueError, match=message),
        ):
            config = replace(SMALL, **({"robust_steps": 2} | changes))
            snapfusion.compress(pipe.private_copy(), around, config)
        assert spent.optimizer_steps == 0, changes
    late = replace(SMALL, latency=0.7, between_steps=2, block_steps=3)
    with pytest.raises(ValueError, match="too few: robust training takes 4"):
        snapfusion.compress(pipe.private_copy(), around, late)


@pytest.mark.parametrize("kind", ["dit", "t2i"])
def test_a_model_that_has_grown_can_be_shrunk_again(kind):
    pipe = tiny.conditional(kind)
    around = tiny.task(pipe)
    grown, notes = snapfusion.compress(
        pipe.private_copy(), around, replace(SMALL, latency=1.5, additions=1)
    )
    assert len(notes["blocks"]["repeated"]) == 1
    shrunk, notes = snapfusion.compress(grown, around, replace(SMALL, latency=0.8))
    assert notes["blocks"]["removed"]
    assert [edit["op"] for edit in shrunk.edits][:2] == ["repeat", "drop"]


def resnet_params(reads, gives, time=1280):
    """Two norms, two 3x3 convolutions, the time projection, a shortcut where the width changes."""
    inner = 2 * reads + 9 * reads * gives + gives + (time + 1) * gives
    shortcut = (reads + 1) * gives if reads != gives else 0
    return inner + 2 * gives + 9 * gives**2 + gives + shortcut


def attention_params(c, text=768):
    """Norm, both projections, three layer norms, self and cross attention, gated feed-forward."""
    attend = (4 * c * c + c) + (2 * c * c + 2 * text * c + c)
    return 2 * c + 2 * (c * c + c) + 6 * c + attend + (8 * c * c + 8 * c) + (4 * c * c + c)


@pytest.mark.parametrize(
    ("up_resnet", "reads", "total"), [(1, 2560, 723_274_884), (2, 1920, 731_468_164)]
)
def test_the_papers_architecture_block_by_block(up_resnet, reads, total):
    """Table 3 from Stable Diffusion v1.5, in two readings: neither has the 848 M of Table 1.

    The table gives numbers of blocks, not which: of the lowest resolution's 7 ResNets the three of
    the up part are taken here, of the next up stage's one.
    """
    model, _ = zoo.ARCHITECTURES["sd15"].on_meta()
    gone = [f"down_blocks.0.attentions.{k}" for k in range(2)]
    gone += [f"up_blocks.3.attentions.{k}" for k in range(3)]
    gone += ["down_blocks.2.resnets.1", f"up_blocks.1.resnets.{up_resnet}"]
    gone += [f"up_blocks.0.resnets.{k}" for k in range(3)]
    depth.drop_units(model, gone)
    depth.repeat_units(model, [f"up_blocks.1.attentions.{k}" for k in range(3)])
    expected = 859_520_964 - 5 * attention_params(320) + 3 * attention_params(1280)
    expected -= resnet_params(1280, 1280) + resnet_params(reads, 1280)
    expected -= 3 * resnet_params(2560, 1280)
    assert sum(p.numel() for p in model.parameters()) == expected == total


def test_what_removals_leave_of_the_budget_is_plain_training(monkeypatch):
    pipe = tiny.conditional("dit")
    config = replace(SMALL, latency=0.7, robust_steps=2, between_steps=1, block_steps=7)
    trained = []
    plain = snapfusion.retrain

    def watch(model, batches, recipe, objective):
        trained.append((objective, recipe.steps))
        return plain(model, batches, recipe, objective)

    monkeypatch.setattr(snapfusion, "retrain", watch)
    _, notes = snapfusion.compress(pipe.private_copy(), tiny.task(pipe), config)
    assert len(notes["blocks"]["removed"]) == 2 and notes["blocks"]["plain_steps"] == 3
    assert [steps for _, steps in trained] == [2, 1, 1, 3]
    robust = [isinstance(objective, snapfusion.RobustLoss) for objective, _ in trained]
    assert robust == [True, True, True, False] and trained[-1][0] is snapfusion.denoising_loss


# --- costs -----------------------------------------------------------------------------------


def test_the_meter_counts_what_evolution_and_distillation_call():
    """Robust steps, the judge and both kinds of answers by hand; counting MACs is no call."""
    pipe = tiny.conditional("dit")  # six blocks of nearly equal cost, guidance 2
    config = replace(
        SMALL,
        latency=0.7,
        robust_steps=2,
        between_steps=1,
        steps=5,
        from_steps=10,
        distill_steps=3,
        probability=1.0,
    )
    with metered(type(pipe.denoiser)) as cost:
        _, notes = snapfusion.compress(pipe.private_copy(), tiny.task(pipe), config)
    gone = len(notes["blocks"]["removed"])
    assert gone == 2
    trained = 2 + gone
    judged = 1 + (1 + 6) + (1 + 5)  # the dense answers; before each removal: whole, and without one
    distilled = 3 * (2 + 1)  # teacher twice, student once, every time with both halves
    assert cost.optimizer_steps == trained + 3
    assert cost.denoiser_calls == trained + judged + distilled
    assert cost.denoiser_images == 4 * trained + 8 * (judged + distilled)


# --- steps -----------------------------------------------------------------------------------


def test_a_pruned_student_is_taught_by_the_dense_model_of_twice_the_steps(monkeypatch):
    asked = []

    def spy(student, teacher, pipe, steps, training):
        size = [sum(p.numel() for p in model.parameters()) for model in (student, teacher)]
        asked.append((steps, *size))
        training.done += 1
        with torch.no_grad():
            next(student.parameters()).add_(1.0)
        return [0.0]

    monkeypatch.setattr(snapfusion, "_halve", spy)
    pipe = tiny.conditional("dit")
    around = tiny.task(pipe)
    whole = sum(p.numel() for p in pipe.denoiser.parameters())
    small = depth.drop(pipe.private_copy(), [ALL[1]])
    less = sum(p.numel() for p in small.denoiser.parameters())
    config = replace(SMALL, steps=5, from_steps=20)
    out, _ = snapfusion.distil_steps(small, around, config, snapfusion.Training(around, config))
    assert out.steps == 5
    assert asked == [(10, less, whole), (10, whole, whole), (5, less, whole)]
    asked.clear()
    own = replace(config, teacher="student")
    small = depth.drop(pipe.private_copy(), [ALL[1]])
    snapfusion.distil_steps(small, around, own, snapfusion.Training(around, own))
    assert asked == [(10, less, whole), (5, less, less)]
    asked.clear()
    # Without pruning the student is as large as its teacher: one chain does.
    dense = pipe.private_copy()
    snapfusion.distil_steps(dense, around, config, snapfusion.Training(around, config))
    assert asked == [(10, whole, whole), (5, whole, whole)]


# --- decoder ---------------------------------------------------------------------------------


def latent_task():
    """A tiny text U-Net on the latents of a small untrained autoencoder: 16 x 16 pixels."""
    torch.manual_seed(0)
    autoencoder = tiny.shaken(small_autoencoder()).requires_grad_(False)
    pipe = replace(tiny.conditional("t2i"), autoencoder=autoencoder)
    images = torch.tanh(torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(5)))
    data = ImageSet(images, torch.arange(64) % 10)
    return Task("tiny", pipe, Splits(data, data, data), 0)


def test_the_decoder_shrinks_learns_and_leaves_the_teacher_alone(tmp_path):
    around = latent_task()
    dense = around.dense
    before = {k: v.clone() for k, v in dense.autoencoder.state_dict().items()}
    config = replace(
        SMALL, decoder_ratio=0.5, decoder_steps=60, decoder_sampling=2, decoder_rate=3e-3
    )
    held_out = decoder.latents(around, "generated", 8, 2, "fp32", "held out")(0)

    def error(pipe):
        with torch.no_grad():
            return float((pipe.decode(held_out) - dense.decode(held_out)).square().mean())

    cut, _ = decoder.pruned_decoder(dense.private_copy(), 0.5)
    pipe, notes = snapfusion.compress(dense.private_copy(), around, config)
    assert error(pipe) < 0.5 * error(cut)
    assert len(notes["decoder"]["losses"]) == 60

    def size(module):
        return sum(p.numel() for p in module.parameters())

    ratio = size(pipe.autoencoder.decoder) / size(dense.autoencoder.decoder)
    assert 0.2 < ratio < 0.35, "half of the channels is about a quarter of the parameters"
    assert size(pipe.autoencoder.encoder) == size(dense.autoencoder.encoder)
    after = dense.autoencoder.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not any(p.requires_grad or p.grad is not None for p in pipe.autoencoder.parameters())

    save_pruned(pipe, tmp_path, "tiny", notes)
    back = replace(load_pruned(tmp_path), conditioning=dense.conditioning)
    noise, rows = around.noise(3, "drawn"), torch.arange(3)
    drawn = [sample(p, noise, 2, rows=rows, precision="fp32") for p in (pipe, back)]
    assert torch.equal(*drawn) and drawn[0].shape == (3, 3, 16, 16)
    assert not torch.equal(drawn[0], sample(dense, noise, 2, rows=rows, precision="fp32"))


def test_latents_are_new_every_step_and_those_of_the_dense_sampler():
    around = latent_task()
    source = decoder.latents(around, "generated", 4, 3, "fp32", "some")
    assert torch.equal(source(0), source(0)) and not torch.equal(source(0), source(1))
    rows, noise = around.prompts(4, "some/0"), around.noise(4, "some/0")
    images = sample(around.dense, noise, 3, rows=rows, precision="fp32")
    with torch.no_grad():
        assert (around.dense.decode(source(0)).clamp(-1, 1) - images).abs().max() <= 1e-4
    encoded = decoder.latents(around, "encoded", 4, 3, "fp32", "some")
    batches = around.training_batches(4)
    assert all(torch.equal(encoded(k), next(batches).x0) for k in range(3))


def test_the_decoder_loss_falls_to_zero_for_a_decoder_that_was_not_cut():
    around = latent_task()
    pipe = around.dense.private_copy()
    source = decoder.latents(around, "encoded", 4, 2, "fp32", "some")
    assert decoder.distil_decoder(pipe, around.dense, source, 1, 0.0) == [0.0]
    assert isinstance(pipe.autoencoder, nn.Module)


def test_a_cut_decoder_equals_the_whole_one_with_silent_channels():
    dense = latent_task().dense
    cut, kept = decoder.pruned_decoder(dense.private_copy(), 0.5)
    keep = cut.edits[-1]["keep"]
    assert {name: len(indices) for name, indices in keep.items()} == kept
    silent = replace(dense, autoencoder=tiny.masked(dense.autoencoder, keep, "within"))
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = cut.decode(z), silent.decode(z)
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
        assert torch.equal(cut.encode(found), dense.encode(found))


# --- all of it -------------------------------------------------------------------------------


def test_a_whole_run_is_measured_saved_and_sampled_by_the_command_line(tmp_path, monkeypatch):
    """Fewer blocks, half a decoder and half the steps: one record, one folder that draws."""
    bench = text_lab.lab(tmp_path, monkeypatch).bench("fashion_t2i")
    settings = {
        "latency": 0.9,
        "clock": "macs",
        "robust_steps": 1,
        "between_steps": 1,
        "batch_size": 2,
        "judged": 1,
        "decoder_ratio": 0.5,
        "decoder_steps": 2,
        "decoder_sampling": 1,
        "steps": 5,
        "from_steps": 10,
        "distill_steps": 2,
        "precision": "fp32",
    }
    words = [f"snapfusion.{key}={value}" for key, value in settings.items()]
    recipe = registry.build_recipe(["snapfusion"], words)
    record = bench.run(recipe, 0, tmp_path / "out")
    results.Record.model_validate_json(json.dumps(record))
    assert record["size"]["macs"] < record["size"]["dense"]["macs"]
    folder = tmp_path / "out" / "model"
    back = load_pruned(folder)
    spent = record["cost"][0]
    removed = sum(edit["op"] == "drop" for edit in back.edits)
    # Robust training, the decoder's distillation, the student's; nothing else is optimised.
    assert spent["optimizer_steps"] == (1 + removed) + 2 + 2

    assert back.steps == 5 and {edit.get("part") for edit in back.edits} == {None, "autoencoder"}
    again = bench.sample(back.to(bench.device), 0)
    drawn, _ = read_tensors(tmp_path / "out" / "samples.safetensors")
    assert torch.equal(again, drawn["images"])

    picture = tmp_path / "red.png"
    asked = ["sample", str(folder), "--prompt", "a red coat on a yellow background"]
    code = main([*asked, "--count", "4", "--precision", "fp32", "--out", str(picture)])
    assert code == 0
    noise = torch.randn((4, 4, 16, 16), generator=torch.Generator().manual_seed(0))
    pipe, rows = prompts.asked(back, "a red coat on a yellow background", 4)
    expected = grid(sample(pipe, noise, 5, rows=rows, precision="fp32"), columns=2)
    with Image.open(picture) as shown:
        assert shown.tobytes() == expected.tobytes()
