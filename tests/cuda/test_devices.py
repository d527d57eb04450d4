"""The contract on a GPU: every method runs there, and draws what it would draw on a CPU."""

from __future__ import annotations

import pytest
import torch

from methods.harness.checkpoint import load_pruned, save_pruned
from methods.harness.denoise import predict
from methods.harness.run import check_bare
from methods.harness.sample import sample
from tests.harness import tiny
from tests.methods.test_contract import CASES, EVERYWHERE, build, compress, same, settings, state

pytestmark = pytest.mark.cuda
# What is chosen before anything is trained or summed in another order: equal on both devices.
DRAWN = {"random_pruning", "magnitude", "uniform_depth", "bk_sdm", "dense"}


@pytest.fixture(autouse=True)
def exact_arithmetic(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize(("case", "name"), EVERYWHERE)
def test_contract_on_cuda(case, name, tmp_path):
    base = build(name).to("cuda")
    method, changes = CASES[case]
    config, around = settings(method, changes), tiny.task(base)
    before = state(base)
    pruned, _ = compress(method, base.private_copy(), around, config)
    assert same(before, state(base)), "the dense teacher was touched"
    assert {p.device.type for p in pruned.denoiser.parameters()} == {"cuda"}
    check_bare(pruned.denoiser)

    batch = next(around.training_batches(2))
    with torch.no_grad():
        answer = predict(pruned.denoiser, batch.x_t, batch.t, batch.condition)
    save_pruned(pruned, tmp_path / "model", "tiny", {})
    back = load_pruned(tmp_path / "model").to("cuda")
    assert same(state(pruned), state(back)), "reload is not bit-exact"
    with torch.no_grad():
        again = predict(back.denoiser, batch.x_t, batch.t, batch.condition)
    assert (again - answer).abs().max() <= 1e-6

    if method in DRAWN:
        base = build(name)
        here, _ = compress(method, base.private_copy(), tiny.task(base), config)
        assert here.edits == pruned.edits
        there = {key: value.cpu() for key, value in state(pruned).items()}
        assert same(state(here), there)


@pytest.mark.parametrize("name", ["many_heads", "t2i", "dit"])
def test_equal_noise_gives_equal_images_on_both_devices(name):
    images = []
    for device in ("cpu", "cuda"):
        base = build(name).to(device)
        around = tiny.task(base)
        rows = around.prompts(4, "x")
        images.append(sample(base, around.noise(4, "x"), 3, rows=rows, precision="fp32"))
    assert (images[0] - images[1]).abs().max() <= 1e-3


def test_batches_are_equal_on_both_devices():
    batches = []
    for device in ("cpu", "cuda"):
        base = build("t2i").to(device)
        batches.append(next(tiny.task(base).training_batches(4)))
    here, there = batches
    assert torch.equal(here.t, there.t.cpu())
    assert torch.equal(here.noise, there.noise.cpu())
    assert (here.x0 - there.x0.cpu()).abs().max() <= 1e-5
