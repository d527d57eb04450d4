"""How far generated images are from real ones, and from the dense model's own images.

Everything is computed in float64, on the device of what is given. Features come from
``methods.harness.features``; a distance means nothing without that protocol and the sample count.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

DATA_RANGE: Final = 2.0  # images in [-1, 1]
_SSIM_WINDOW: Final = 11
_SSIM_SIGMA: Final = 1.5
_ROWS: Final = 1000  # rows of a kernel matrix held at once
_IMAGES: Final = 250  # images filtered at once


@dataclass(frozen=True)
class FeatureStats:
    """Mean and covariance of a set of features, kept as a factor so that it stays exactly PSD."""

    count: int
    mean: Tensor  # (D,)
    factor: Tensor  # (min(count, D), D); factor.T @ factor is the unbiased covariance

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance, (D, D)."""
        return self.factor.T @ self.factor


def feature_stats(features: Tensor) -> FeatureStats:
    """Statistics of ``features`` (N >= 2, D): the reusable side of many Fréchet distances."""
    x = _features("features", features)
    mean = x.mean(0)
    factor = (x - mean) / math.sqrt(len(x) - 1)
    if len(x) > x.shape[1]:
        # R of X = QR has R^T R = X^T X: a smaller factor, without squaring the condition number.
        factor = torch.linalg.qr(factor, mode="r").R
    return FeatureStats(len(x), mean, factor)


def frechet_distance(a: Tensor | FeatureStats, b: Tensor | FeatureStats) -> float:
    """Fréchet distance between Gaussians fitted to two sets of features (N, D) and (M, D).

    |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), Heusel et al. 2017, arXiv 1706.08500, eq. 6
    (squared, as FID is). With S = R^T R for each set, the last trace is the nuclear norm of
    R_a R_b^T, which needs no matrix root and is exact for any N, also below D. It is biased upwards
    for small sets: compare figures of equal N only. Never negative. Raises ValueError for sets that
    are not finite, have fewer than 2 rows or differ in D.
    """
    p, q = (x if isinstance(x, FeatureStats) else feature_stats(x) for x in (a, b))
    if p.mean.shape != q.mean.shape:
        raise ValueError(f"feature sets differ in width: {len(p.mean)} and {len(q.mean)}")
    root_trace = torch.linalg.svdvals(p.factor @ q.factor.T).sum()
    spread = p.factor.square().sum() + q.factor.square().sum() - 2 * root_trace
    distance: float = ((p.mean - q.mean).square().sum() + spread).item()
    return max(distance, 0.0)


def frechet_from_moments(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """The same distance from means (D,) and covariances (D, D), for statistics from elsewhere.

    Takes the trace of the symmetric root (S_a^(1/2) S_b S_a^(1/2))^(1/2) by eigenvalues. Those that
    are negative by rounding count as zero; ValueError where a matrix is not symmetric or clearly
    not positive semi-definite, or where shapes differ.
    """
    mean_a, mean_b = mean_a.double(), mean_b.double()
    if mean_a.shape != mean_b.shape or mean_a.ndim != 1:
        raise ValueError(
            f"means are vectors of one length, got {tuple(mean_a.shape)}, {tuple(mean_b.shape)}"
        )
    if not (mean_a.isfinite().all() and mean_b.isfinite().all()):
        raise ValueError("means hold nan or infinite values")
    root = _psd_root("the first covariance", cov_a, len(mean_a))
    other = _psd_root("the second covariance", cov_b, len(mean_b))
    product = root @ other @ other @ root
    values = torch.linalg.eigvalsh((product + product.T) / 2)
    spread = cov_a.double().trace() + cov_b.double().trace() - 2 * values.clamp(min=0).sqrt().sum()
    distance: float = ((mean_a - mean_b).square().sum() + spread).item()
    return max(distance, 0.0)


@dataclass(frozen=True)
class KernelSet:
    """A set of features with the mean of its own kernel matrix, which many distances share."""

    features: Tensor  # (N, D), float64
    own: float  # mean of k(x, x') over x != x'


def kernel_set(features: Tensor) -> KernelSet:
    """The reusable side of many kernel distances; ``features`` (N >= 2, D)."""
    x = _features("features", features)
    return KernelSet(x, _mean_off_diagonal(x))


def kernel_distance(a: Tensor | KernelSet, b: Tensor | KernelSet) -> float:
    """Unbiased squared maximum mean discrepancy of features (N, D) and (M, D), cubic kernel.

    The estimator and the kernel k(x, y) = (x.y / D + 1)^3 of the Kernel Inception Distance
    (Binkowski et al. 2018, arXiv 1801.01401, section 4), on the full sets instead of an average
    over subsets. Unbiased, so it can be slightly negative for equal distributions. ValueError as
    ``frechet_distance``.
    """
    p, q = (x if isinstance(x, KernelSet) else kernel_set(x) for x in (a, b))
    x, y = p.features, q.features
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"feature sets differ in width: {x.shape[1]} and {y.shape[1]}")
    cross = _kernel_sum(x, y) / (len(x) * len(y))
    return p.own + q.own - 2 * cross


def kernel_distance_error(a: Tensor, b: Tensor, *, blocks: int = 10) -> float:
    """Standard error of ``kernel_distance``, from its spread over disjoint blocks of both sets.

    Blocks are runs of rows, so rows must not be sorted (by class, say). Near zero distance it
    overstates the error, as the variance of one full estimate then falls faster than 1 / N.
    ValueError where a set cannot give each of at least 2 blocks 2 rows.
    """
    x, y = _features("first set", a), _features("second set", b)
    if blocks < 2 or min(len(x), len(y)) < 2 * blocks:
        raise ValueError(f"{len(x)} and {len(y)} rows do not fill {blocks} blocks of 2 or more")
    pairs = zip(x.tensor_split(blocks), y.tensor_split(blocks), strict=True)
    values = torch.tensor([kernel_distance(p, q) for p, q in pairs], dtype=torch.float64)
    return (values.std() / math.sqrt(blocks)).item()


def same_noise_mse(a: Tensor, b: Tensor) -> float:
    """Mean squared difference of images (N, C, H, W) in [-1, 1] drawn from the same noise.

    0 for equal images, 4 for black against white. ValueError for sets of different shape or values
    that are not finite.
    """
    _check_images(a, b)
    total = 0.0
    for p, q in zip(torch.split(a, _IMAGES), torch.split(b, _IMAGES), strict=True):
        total += (p.double() - q.double()).square().sum().item()
    return total / a.numel()


def ssim(a: Tensor, b: Tensor, *, data_range: float = DATA_RANGE) -> float:
    """Mean structural similarity of image pairs (N, C, H, W): 1 for equal images, in [-1, 1].

    Wang et al. 2004, IEEE TIP 13(4), eq. 13: 11x11 Gaussian window of sigma 1.5, K1 = 0.01,
    K2 = 0.03, only windows that lie inside the image; each image's mean over windows and channels,
    then the mean over images. ``data_range`` is the span of possible values L: 2 for [-1, 1].
    ValueError as ``same_noise_mse``, and for images under 11x11.
    """
    _check_images(a, b)
    if min(a.shape[-2:]) < _SSIM_WINDOW:
        raise ValueError(f"images are at least 11x11 for SSIM, got {tuple(a.shape[-2:])}")
    if not (math.isfinite(data_range) and data_range > 0):
        raise ValueError(f"data_range is a positive number, got {data_range}")
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    total = 0.0
    for p, q in zip(torch.split(a, _IMAGES), torch.split(b, _IMAGES), strict=True):
        x, y = p.double(), q.double()
        mu_x, mu_y = _window_mean(x), _window_mean(y)
        var_x, var_y = _window_mean(x * x) - mu_x**2, _window_mean(y * y) - mu_y**2
        cov = _window_mean(x * y) - mu_x * mu_y
        luminance = (2 * mu_x * mu_y + c1) / (mu_x**2 + mu_y**2 + c1)
        contrast_structure = (2 * cov + c2) / (var_x + var_y + c2)
        total += (luminance * contrast_structure).mean((1, 2, 3)).sum().item()
    return total / len(a)


def _psd_root(name: str, matrix: Tensor, size: int) -> Tensor:
    s = matrix.double()
    if s.shape != (size, size) or not s.isfinite().all():
        raise ValueError(f"{name} is a finite {size}x{size} matrix, got shape {tuple(s.shape)}")
    scale = s.abs().max().item()
    if (s - s.T).abs().max().item() > 1e-6 * scale:
        raise ValueError(f"{name} is not symmetric")
    values, vectors = torch.linalg.eigh((s + s.T) / 2)
    # Single-precision statistics leave negative eigenvalues of about 1e-7 of the largest.
    if values[0].item() < -1e-5 * scale:
        raise ValueError(f"{name} is not positive semi-definite: eigenvalue {values[0].item():g}")
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


def _kernel_sum(x: Tensor, y: Tensor) -> float:
    rows = (((part @ y.T) / x.shape[1] + 1).pow(3).sum() for part in torch.split(x, _ROWS))
    return math.fsum(row.item() for row in rows)


def _mean_off_diagonal(x: Tensor) -> float:
    diagonal = (x.square().sum(1) / x.shape[1] + 1).pow(3).sum().item()
    return (_kernel_sum(x, x) - diagonal) / (len(x) * (len(x) - 1))


def _window_mean(x: Tensor) -> Tensor:
    """Gaussian average around every pixel whose window is inside: (B, C, H - 10, W - 10)."""
    offsets = torch.arange(_SSIM_WINDOW, dtype=x.dtype, device=x.device) - _SSIM_WINDOW // 2
    g = (-(offsets**2) / (2 * _SSIM_SIGMA**2)).exp()
    g = g / g.sum()
    flat = x.flatten(0, 1).unsqueeze(1)  # (B C, 1, H, W)
    flat = F.conv2d(F.conv2d(flat, g.view(1, 1, -1, 1)), g.view(1, 1, 1, -1))
    return flat.reshape(*x.shape[:2], *flat.shape[2:])


def _features(name: str, x: Tensor) -> Tensor:
    if x.ndim != 2 or x.shape[0] < 2 or x.shape[1] < 1:
        raise ValueError(f"{name}: features have shape (N >= 2, D >= 1), got {tuple(x.shape)}")
    if not x.isfinite().all():
        raise ValueError(f"{name}: features hold nan or infinite values")
    return x.double()


def _check_images(a: Tensor, b: Tensor) -> None:
    if a.ndim != 4 or a.shape != b.shape or 0 in a.shape:
        raise ValueError(
            f"both image sets have one shape (N, C, H, W): {tuple(a.shape)}, {tuple(b.shape)}"
        )
    if not (a.is_floating_point() and b.is_floating_point()):
        raise ValueError(f"images are floating point in [-1, 1], got {a.dtype} and {b.dtype}")
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("images hold nan or infinite values")
