"""2:4 weights where hardware skips their zeros: packing the linear layers of a finished model.

NVIDIA GPUs from Ampere on multiply a matrix of at most two non-zeros in every four neighbouring
inputs by a kernel that never reads the zeros. torch offers it for linear layers only, in two
backends; `PACKINGS` names them. A convolution stays dense whatever its zeros.

    pipe = load_pruned(Path("build/results/fashion_dit/sparsedm/0/model"))
    model = pipe.denoiser.to("cuda", torch.bfloat16)
    packing = to_semi_structured(model)  # .packed: names; .left: why the others stayed dense
    answer = model(x_t.to("cuda", torch.bfloat16), t.cuda(), class_labels=labels.cuda()).sample

Share of the parameters in linear layers of a shape that the kernels take in half precision, and in
those of them that `sparsedm` masks by default (all but the embeddings of time and class):

    base           cusparselt   cutlass   cusparselt, masked by default
    fashion_unet       14.7 %    14.5 %                          13.9 %
    fashion_dit        99.1 %    26.6 %                          57.0 %
    fashion_t2i        40.5 %     9.4 %                          39.6 %
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Packing:
    """What became of the linear layers."""

    packed: list[str]
    left: dict[str, str]  # name -> why it stayed dense


def to_semi_structured(
    model: nn.Module,
    layers: Sequence[str] | None = None,
    backend: Backend = "cusparselt",
) -> Packing:
    """Pack the weights of 2:4 linear layers for sparse kernels, in place.

    For a loaded result of layout "input" on a CUDA device, in half precision. What comes out runs
    but can be neither trained nor saved. Nothing is changed when it raises.

    Args:
        model: the denoiser, or any module that holds linear layers.
        layers: names of the layers to pack, each of which must fit; None takes every linear layer
            that fits and tells why the others do not.
        backend: a key of `PACKINGS`.

    Raises:
        ValueError: a named layer is not 2:4 or is refused, or no layer fits: the model is not on a
            CUDA device, or the kernel refuses the layers' shapes or dtypes, or the device.
    """
    if backend not in PACKINGS:
        raise ValueError(f"backend must be one of {', '.join(PACKINGS)}, not {backend!r}")
    linears = {n: layer for n, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    if not any(is_two_of_four(layer) for layer in linears.values()):
        raise ValueError("no linear layer of the model has at most 2 non-zeros in every run of 4")
    for name in layers or ():
        if name not in linears or not is_two_of_four(linears[name]):
            raise ValueError(f"{name} is no linear layer with 2 non-zeros in every run of 4")
    weights: dict[str, Tensor] = {}
    left: dict[str, str] = {}
    refusal: ValueError | None = None
    for name in linears if layers is None else layers:
        if not is_two_of_four(linears[name]):
            left[name] = "packed before" if _is_packed(linears[name]) else "not 2:4"
            continue
        try:
            weights[name] = pack(linears[name].weight.detach(), backend, name)
        except ValueError as error:
            if layers is not None:
                raise
            refusal = refusal or error
            left[name] = str(error)
    if refusal is not None and not weights:
        raise ValueError(f"no layer can be packed; the first, {refusal}") from refusal
    for name, tensor in weights.items():
        linears[name].register_parameter("weight", nn.Parameter(tensor, requires_grad=False))
    return Packing(list(weights), left)


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
    if _is_packed(layer):
        return False
    runs = layer.weight.detach().reshape(-1, 4)
    return bool(((runs != 0).sum(dim=1) <= 2).all())


def _is_packed(layer: nn.Linear) -> bool:
    return isinstance(layer.weight, torch.sparse.SparseSemiStructuredTensor)
