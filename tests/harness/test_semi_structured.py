"""What can be packed for sparse kernels, and what is said where it cannot."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn

from methods import sparsedm
from methods.harness import semi_structured, zoo
from methods.harness.checkpoint import load_pruned, save_pruned
from methods.harness.masks import sparse_layers
from methods.harness.semi_structured import (
    PACKINGS,
    Backend,
    Packing,
    is_two_of_four,
    to_semi_structured,
)
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


@pytest.fixture
def kernel(monkeypatch):
    """Stands in for a GPU: takes what torch's table of shapes allows, and leaves it as it is."""

    def pack(weight, backend="cusparselt", name="the layer"):
        least = PACKINGS[backend]._DTYPE_SHAPE_CONSTRAINTS[torch.bfloat16]
        if weight.shape[0] % least.sparse_min_rows or weight.shape[1] % least.sparse_min_cols:
            raise ValueError(f"{name}: too small")
        taken.append(name)
        return weight.clone()

    taken: list[str] = []
    monkeypatch.setattr(semi_structured, "pack", pack)
    return taken


def test_what_fits_is_packed_and_the_rest_is_told(kernel):
    model = nn.Sequential(
        two_of_four(nn.Linear(64, 64)), nn.Linear(64, 64), two_of_four(nn.Linear(64, 8))
    )
    found = to_semi_structured(model)
    assert found == Packing(["0"], {"1": "not 2:4", "2": "2: too small"})
    assert [layer.weight.requires_grad for layer in model] == [False, True, True]


def test_named_layers_all_have_to_fit(kernel):
    model = nn.Sequential(two_of_four(nn.Linear(64, 64)), two_of_four(nn.Linear(64, 8)))
    with pytest.raises(ValueError, match=r"^1: too small"):
        to_semi_structured(model, ["0", "1"])
    assert all(layer.weight.requires_grad for layer in model)
    assert to_semi_structured(model, ["0"]) == Packing(["0"], {})
    with pytest.raises(ValueError, match="no layer can be packed; the first, 0: too small"):
        to_semi_structured(nn.Sequential(two_of_four(nn.Linear(64, 8))))


def test_a_saved_model_is_packed_and_called_as_the_example_does(kernel, tmp_path):
    base = tiny.conditional("dit")
    around = tiny.task(base)
    pruned, _ = sparsedm.compress(base.private_copy(), around, sparsedm.Config(steps=0))
    save_pruned(pruned, tmp_path, "tiny", {})
    model = load_pruned(tmp_path).denoiser.to(dtype=torch.bfloat16)
    found = to_semi_structured(model)
    inner = [n for n, m in sparse_layers(model, "inner").items() if isinstance(m, nn.Linear)]
    assert found.packed == kernel == inner
    assert set(found.left.values()) == {"not 2:4"}
    batch = next(around.training_batches(2))
    answer = model(batch.x_t.bfloat16(), batch.t, **batch.condition).sample
    assert bool(answer.isfinite().all())


def test_shares_of_the_bases_are_those_of_the_docstring():
    for name in zoo.BASES:
        model, _ = zoo.ARCHITECTURES[name].on_meta()
        whole = sum(parameter.numel() for parameter in model.parameters())
        cells = []
        for which, backend in (("all", "cusparselt"), ("all", "cutlass"), ("inner", "cusparselt")):
            least = PACKINGS[backend]._DTYPE_SHAPE_CONSTRAINTS[torch.bfloat16]
            taken = sum(
                layer.weight.numel()
                for layer in sparse_layers(model, which).values()
                if isinstance(layer, nn.Linear)
                and not layer.out_features % least.sparse_min_rows
                and not layer.in_features % least.sparse_min_cols
            )
            cells += [f"{taken / whole:.1%}".replace("%", " %")]
        (line,) = [
            line for line in semi_structured.__doc__.splitlines() if line.split()[:1] == [name]
        ]
        assert " ".join(line.split()) == f"{name} {' '.join(cells)}"
    assert set(PACKINGS) == set(get_args(Backend))


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
