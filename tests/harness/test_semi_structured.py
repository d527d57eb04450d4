"""What can be packed for sparse kernels, and what is said where it cannot."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from methods import sparsedm
from methods.harness.semi_structured import is_two_of_four, to_semi_structured
from tests.harness import tiny


def two_of_four(layer):
    """The layer with the first two of every four inputs."""
    with torch.no_grad():
        layer.weight.view(-1, 4)[:, 2:] = 0.0
    return layer


def test_packing_needs_a_pattern_and_a_cuda_device():
    base = tiny.pipeline()
    with pytest.raises(ValueError, match="no linear layer"):
        to_semi_structured(base.denoiser)
    config = sparsedm.Config(steps=0)
    pruned, _ = sparsedm.compress(base.private_copy(), tiny.task(base), config)
    before = {name: value.clone() for name, value in pruned.denoiser.state_dict().items()}
    with pytest.raises(ValueError, match=r"lies on cpu, .* CUDA devices only"):
        to_semi_structured(pruned.denoiser)
    after = pruned.denoiser.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": ["1"]}, "1 is no linear layer with 2 non-zeros"),
        ({"layers": ["nowhere"]}, "nowhere is no linear layer"),
        ({"backend": "mkl"}, "backend must be one of cusparselt, cutlass"),
    ],
)
def test_bad_requests_are_named(changes, message):
    model = nn.Sequential(two_of_four(nn.Linear(64, 64)), nn.Linear(64, 64))
    with pytest.raises(ValueError, match=message):
        to_semi_structured(model, **changes)


def test_two_of_four_is_seen_along_inputs_of_linear_layers_only():
    layer = nn.Linear(8, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0, 0, 2, 3, 4, 0, 0], [0, 0, 0, 0, 0, 1, 1, 0]]))
        assert is_two_of_four(layer)
        layer.weight[1, 4] = 1.0
        assert not is_two_of_four(layer)
    conv = nn.Conv2d(4, 4, 1)
    nn.init.zeros_(conv.weight)
    assert not is_two_of_four(conv)
    assert not is_two_of_four(nn.Linear(6, 2))
