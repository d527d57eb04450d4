"""2:4 weights where hardware skips their zeros: packing the linear layers of a finished model.

NVIDIA GPUs from Ampere on multiply a matrix of at most two non-zeros in every four neighbouring
inputs by a kernel that never reads the zeros. torch offers it for linear layers only, in two
backends; `PACKINGS` names them. A convolution stays dense whatever its zeros.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Backend = Literal["cusparselt", "cutlass"]
PACKINGS: dict[str, Any] = {
    "cusparselt": torch.sparse.SparseSemiStructuredTensorCUSPARSELT,  # torch's own choice
    "cutlass": torch.sparse.SparseSemiStructuredTensorCUTLASS,
}
_TOKENS = 8  # the fewest that every kernel takes without padding


def to_semi_structured(
    model: nn.Module,
    layers: Sequence[str] | None = None,
    backend: Backend = "cusparselt",
) -> list[str]:
    """Pack the weights of 2:4 linear layers for sparse kernels, in place; names of those.

    For a loaded result of layout "input" on a CUDA device, in half precision. What comes out runs
    but can be neither trained nor saved. Nothing is changed when anything fails.

    Args:
        model: the denoiser, or any module that holds linear layers.
        layers: names of the layers to pack; None takes every linear layer that is 2:4.
        backend: a key of `PACKINGS`.

    Raises:
        ValueError: no linear layer is 2:4, a named one is not, the model is not on a CUDA device,
            or the kernel refuses a layer's shape or dtype, or the device.
    """
    if backend not in PACKINGS:
        raise ValueError(f"backend must be one of {', '.join(PACKINGS)}, not {backend!r}")
    linears = {name: layer for name, layer in model.named_modules() if is_two_of_four(layer)}
    if not linears:
        raise ValueError("no linear layer of the model has at most 2 non-zeros in every run of 4")
    if layers is not None:
        other = sorted(set(layers) - linears.keys())
        if other:
            raise ValueError(f"{other[0]} is no linear layer with 2 non-zeros in every run of 4")
        linears = {name: linears[name] for name in layers}
    packed = {
        name: pack(layer.get_parameter("weight").detach(), backend, name)
        for name, layer in linears.items()
    }
    for name, tensor in packed.items():
        linears[name].register_parameter("weight", nn.Parameter(tensor, requires_grad=False))
    return list(packed)


def pack(weight: Tensor, backend: Backend = "cusparselt", name: str = "the layer") -> Tensor:
    """A 2:4 weight (out, in) in the backend's format, tried on one small product.

    Raises:
        ValueError: as `to_semi_structured`; the text begins with `name`.
    """
    if weight.device.type != "cuda":
        raise ValueError(
            f"{name} lies on {weight.device}, but torch's semi-structured kernels exist for "
            "CUDA devices only; move the model to one, or run it dense"
        )
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.filterwarnings("ignore", message=".*SparseSemiStructuredTensor.*prototype")
            packed: Tensor = PACKINGS[backend].from_dense(weight.contiguous())
            # Some devices pack what they then cannot multiply.
            F.linear(weight.new_zeros(_TOKENS, weight.shape[1]), packed)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{name}: torch's {backend} kernel does not take {tuple(weight.shape)} {weight.dtype} "
            f"on this device ({reason}); leave the layer dense"
        ) from error
    return packed


def packed_bytes(weight: Tensor) -> int:
    """Bytes that a packed weight occupies, kept values and their places together."""
    parts = (getattr(weight, slot) for slot in ("packed", "meta", "packed_t", "meta_t"))
    return sum(part.numel() * part.element_size() for part in parts if part is not None)


def is_two_of_four(layer: nn.Module) -> bool:
    """Whether this is a linear layer of at most 2 non-zeros in every 4 neighbouring inputs."""
    if not isinstance(layer, nn.Linear) or layer.in_features % 4:
        return False
    if isinstance(layer.weight, torch.sparse.SparseSemiStructuredTensor):
        return False  # packed before
    runs = layer.weight.detach().reshape(-1, 4)
    return bool(((runs != 0).sum(dim=1) <= 2).all())
