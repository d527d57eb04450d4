"""Packed 2:4 layers against the dense masked ones, where a GPU has the kernels."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch import nn

from methods.harness import zoo
from methods.harness.masks import NOfM, apply_masks, removed, sparse_layers
from methods.harness.semi_structured import (
    PACKINGS,
    Packing,
    packed_bytes,
    to_semi_structured,
)
from tests.harness import tiny

pytestmark = pytest.mark.cuda

DTYPES = (torch.float16, torch.bfloat16)


def masked(model):
    """The model on the GPU with its linear layers in 2:4."""
    layers = {n: m for n, m in sparse_layers(model, "all").items() if isinstance(m, nn.Linear)}
    pattern = NOfM(2, 4)
    apply_masks(
        model, {f"{n}.weight": removed(m.weight.detach().abs(), pattern) for n, m in layers.items()}
    )
    return model.cuda().eval()


def dit():
    """A DiT whose blocks are 128 wide: 16 tokens, 2 heads of 64."""
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=1,
        out_channels=1,
        num_layers=3,
        num_attention_heads=2,
        attention_head_dim=64,
        num_embeds_ada_norm=10,
        norm_num_groups=1,
    )
    return tiny.shaken(zoo.without_label_dropout(model))


def works(backend, dtype):
    """Whether this GPU and this torch have the backend; the reason is not ours to test."""
    probe = masked(nn.Sequential(nn.Linear(128, 128, bias=False))).to(dtype)
    try:
        to_semi_structured(probe, backend=backend)
    except ValueError:
        return False
    return True


@pytest.fixture(params=list(PACKINGS))
def backend(request):
    if not works(request.param, torch.float16):
        pytest.skip(f"this GPU or this torch has no {request.param} kernel")
    return request.param


def test_one_backend_works():
    """Ampere and later have sparse tensor cores; older cards cannot run any of this."""
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs compute capability 8.0")
    assert any(works(backend, torch.float16) for backend in PACKINGS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("inputs", "outputs"), [(128, 128), (256, 1024), (1024, 256)])
@pytest.mark.parametrize("tokens", [1, 7, 64, 1000])
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_layer_answers_as_the_masked_one(backend, dtype, inputs, outputs, tokens, bias):
    torch.manual_seed(0)
    layer = masked(nn.Sequential(nn.Linear(inputs, outputs, bias=bias))).to(dtype)
    x = torch.randn(2, tokens, inputs, device="cuda", dtype=dtype)
    with torch.no_grad():
        exact = nn.functional.linear(
            x.double(), layer[0].weight.double(), None if not bias else layer[0].bias.double()
        )
        dense = layer(x)
        assert to_semi_structured(layer, backend=backend).packed == ["0"]
        sparse = layer(x)
    assert sparse.shape == dense.shape and sparse.dtype == dtype
    # Products are summed in another order: as far from the exact answer as the dense kernel is.
    rounding = (dense.double() - exact).abs().max()
    assert (sparse.double() - exact).abs().max() <= 2 * rounding + 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_packing_halves_the_values_and_adds_their_places(backend, dtype):
    layer = masked(nn.Sequential(nn.Linear(512, 512, bias=False))).to(dtype)
    dense = layer[0].weight.numel() * layer[0].weight.element_size()
    to_semi_structured(layer, backend=backend)
    # Two of four 16-bit values stay, with two bits each: 9/16, and what the library pads.
    assert 9 / 16 * dense <= packed_bytes(layer[0].weight) < 0.75 * dense


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_whole_dit_answers_as_its_masked_self(backend, dtype):
    """Layers that the kernel's tiles fit are packed; the rest of the model stays as it is."""
    model = masked(dit()).to(dtype)
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name.startswith("transformer_blocks.")
        and not module.in_features % 64
        and not module.out_features % 64
        and ".norm1." not in name
    ]
    assert len(layers) == 6 * len(model.transformer_blocks)
    packed = copy.deepcopy(model)
    assert to_semi_structured(packed, layers, backend) == Packing(layers, {})
    x = torch.randn(4, 1, 8, 8, device="cuda", dtype=dtype)
    t, labels = torch.tensor([0, 10, 500, 999]).cuda(), torch.arange(4).cuda()
    with torch.no_grad():
        settings = {"timestep": t, "class_labels": labels, "return_dict": False}
        exact = copy.deepcopy(model).double()(x.double(), **settings)[0]
        dense = model(x, **settings)[0].double()
        sparse = packed(x, **settings)[0].double()
    # A wrong packing errs by the size of the answer, hundreds of times the rounding.
    rounding = (dense - exact).abs().max()
    assert (sparse - exact).abs().max() <= 4 * rounding + 1e-6
    assert rounding < 0.05 * exact.abs().max()


@pytest.mark.parametrize(
    ("inputs", "outputs", "dtype"),
    [(72, 128, torch.float16), (128, 72, torch.bfloat16), (128, 128, torch.float64)],
)
def test_what_the_kernel_refuses_is_named_and_nothing_changes(backend, inputs, outputs, dtype):
    good = masked(nn.Sequential(nn.Linear(128, 128), nn.Linear(inputs, outputs)).double()).to(dtype)
    before = [layer.weight.detach().clone() for layer in good]
    with pytest.raises(ValueError, match=r"^[01]: torch's \w+ kernel does not take \(\d+, \d+\)"):
        to_semi_structured(good, ["0", "1"], backend)
    for layer, weight in zip(good, before, strict=True):
        assert torch.equal(layer.weight, weight)


def test_what_the_kernel_takes_is_packed_and_the_rest_told(backend):
    model = masked(nn.Sequential(nn.Linear(128, 128), nn.Linear(128, 72))).half()
    x = torch.randn(4, 128, device="cuda", dtype=torch.float16)
    with torch.no_grad():
        dense = model(x)
        found = to_semi_structured(model, backend=backend)
        sparse = model(x)
    assert found.packed == ["0"] and list(found.left) == ["1"]
    assert "kernel does not take (72, 128)" in found.left["1"]
    assert torch.allclose(sparse, dense, atol=1e-2, rtol=1e-2)


def test_packing_twice_finds_nothing_more(backend):
    layer = masked(nn.Sequential(nn.Linear(128, 128))).half()
    to_semi_structured(layer, backend=backend)
    with pytest.raises(ValueError, match="no linear layer"):
        to_semi_structured(layer, backend=backend)
