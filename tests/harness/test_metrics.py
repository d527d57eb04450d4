"""Distances against scipy, closed forms, slow direct sums, and what must hold."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from methods.harness import metrics


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated(seed: int, n: int, d: int) -> Tensor:
    """Features with unequal variances, correlations and a mean."""
    return gaussian(seed, n, d) @ gaussian(seed + 1, d, d) / d**0.5 + gaussian(seed + 2, d)


def pictures(n: int, size: int = 28) -> Tensor:
    """Smooth shapes on a dark ground in [-1, 1], (n, 1, size, size): blobs with edges and ramps."""
    g = torch.Generator().manual_seed(3)
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    p = torch.rand(n, 6, 1, 1, generator=g)
    cx, cy = p[:, 0] - 0.5, p[:, 1] - 0.5
    inside = ((x - cx) / (0.3 + 0.5 * p[:, 2])) ** 2 + ((y - cy) / (0.3 + 0.5 * p[:, 3])) ** 2
    shade = 0.6 * p[:, 4] + 0.3 * torch.sin(3 * x + 6 * p[:, 5]) * y
    return (torch.sigmoid(20 * (1 - inside)) * (1 + shade) - 1).clamp(-1, 1).unsqueeze(1)


def scipy_frechet(a: Tensor, b: Tensor) -> float:
    """The textbook form: means, covariances and a general matrix square root."""
    x, y = a.numpy(), b.numpy()
    s, t = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(s @ t).real
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + t - 2 * root))


@pytest.mark.parametrize(("n", "m"), [(200, 300), (200, 9), (8, 150)])
def test_frechet_equals_scipy(n: int, m: int) -> None:
    a, b = correlated(0, n, 16), correlated(10, m, 16)
    assert metrics.frechet_distance(a, b) == pytest.approx(scipy_frechet(a, b), rel=1e-6)


def test_frechet_of_sets_smaller_than_the_width_equals_the_eigenvalue_form() -> None:
    # scipy's root of a product of two singular matrices fails, so the oracle is the symmetric form.
    a, b = correlated(0, 12, 40), correlated(10, 9, 40)
    expected = metrics.frechet_from_moments(a.mean(0), torch.cov(a.T), b.mean(0), torch.cov(b.T))
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_frechet_from_moments_equals_scipy() -> None:
    a, b = correlated(0, 200, 16), correlated(10, 300, 16)
    got = metrics.frechet_from_moments(a.mean(0), torch.cov(a.T), b.mean(0), torch.cov(b.T))
    assert got == pytest.approx(scipy_frechet(a, b), rel=1e-6)


def test_frechet_of_commuting_gaussians_has_its_closed_form() -> None:
    mean, one, four = torch.tensor([3.0, 0.0]), torch.diag(torch.tensor([1.0, 9.0])), torch.eye(2)
    # |3|^2 + (1 - 1)^2 + (3 - 1)^2
    got = metrics.frechet_from_moments(mean, one, torch.zeros(2), four)
    assert got == pytest.approx(13.0, abs=1e-12)


@pytest.mark.parametrize("n", [10, 200])
def test_frechet_of_a_translation_is_its_squared_length(n: int) -> None:
    a, shift = correlated(0, n, 32), gaussian(7, 32)
    got = metrics.frechet_distance(a, a + shift)
    assert got == pytest.approx(shift.square().sum().item(), rel=1e-9)


def test_frechet_of_a_scaling_has_its_closed_form() -> None:
    a = correlated(0, 100, 8)
    a = a - a.mean(0)
    # Equal eigenvectors, standard deviations doubled: the trace of the covariance.
    assert metrics.frechet_distance(a, 2 * a) == pytest.approx(torch.cov(a.T).trace().item())


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(2, 30),
    m=st.integers(2, 30),
    d=st.integers(1, 20),
    scale=st.floats(1e-3, 1e3),
)
def test_frechet_is_symmetric_nonnegative_scales_and_vanishes_on_itself(
    seed: int, n: int, m: int, d: int, scale: float
) -> None:
    a, b = gaussian(seed, n, d), gaussian(seed + 1, m, d) * 2
    ab = metrics.frechet_distance(a, b)
    size = (a.square().sum() + b.square().sum()).item()
    assert ab >= 0
    assert ab == pytest.approx(metrics.frechet_distance(b, a), abs=1e-9 * size)
    scaled = metrics.frechet_distance(scale * a, scale * b)
    assert scaled == pytest.approx(scale**2 * ab, abs=1e-9 * size * scale**2)
    shuffled = a[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
    assert metrics.frechet_distance(a, shuffled) == pytest.approx(0, abs=1e-9 * size)


def test_statistics_serve_in_place_of_their_features() -> None:
    a, b = correlated(0, 50, 8), correlated(10, 60, 8)
    stats = metrics.feature_stats(a)
    assert stats.count == 50
    assert stats.factor.shape == (8, 8)
    torch.testing.assert_close(stats.covariance, torch.cov(a.T))
    assert metrics.frechet_distance(stats, b) == metrics.frechet_distance(a, b)


def test_constant_features_are_no_obstacle() -> None:
    a = torch.ones(10, 3)
    assert metrics.frechet_distance(a, a + 2) == pytest.approx(12)


@pytest.mark.parametrize(
    ("cov", "words"),
    [
        (torch.diag(torch.tensor([1.0, -0.1])), "not positive semi-definite"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "not symmetric"),
        (torch.eye(3), "finite 2x2"),
        (torch.full((2, 2), math.nan), "finite 2x2"),
    ],
)
def test_moments_that_no_distribution_has_are_refused(cov: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        metrics.frechet_from_moments(torch.zeros(2), cov, torch.zeros(2), torch.eye(2))


def test_means_that_do_not_fit_are_refused() -> None:
    eye = torch.eye(2)
    with pytest.raises(ValueError, match="one length"):
        metrics.frechet_from_moments(torch.zeros(2), eye, torch.zeros(3), torch.eye(3))
    with pytest.raises(ValueError, match="nan or infinite"):
        metrics.frechet_from_moments(torch.full((2,), math.nan), eye, torch.zeros(2), eye)


def test_eigenvalues_negative_by_rounding_are_accepted() -> None:
    cov = torch.diag(torch.tensor([1.0, -1e-8]))
    got = metrics.frechet_from_moments(torch.zeros(2), cov, torch.zeros(2), torch.eye(2))
    assert got == pytest.approx(1.0, abs=1e-3)


def slow_kernel_distance(a: Tensor, b: Tensor) -> float:
    def k(x: Tensor, y: Tensor) -> float:
        return (sum(p * q for p, q in zip(x.tolist(), y.tolist(), strict=True)) / len(x) + 1) ** 3

    n, m = len(a), len(b)
    within_a = sum(k(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_b = sum(k(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    between = sum(k(a[i], b[j]) for i in range(n) for j in range(m)) / (n * m)
    return within_a + within_b - 2 * between


def test_kernel_distance_equals_direct_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = correlated(0, 7, 5), correlated(10, 9, 5)
    expected = slow_kernel_distance(a, b)
    assert metrics.kernel_distance(a, b) == pytest.approx(expected, rel=1e-10)
    monkeypatch.setattr(metrics, "_ROWS", 2)  # several chunks, the last one shorter
    assert metrics.kernel_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_kernel_distance_is_symmetric_and_centred_on_zero() -> None:
    a, b = correlated(0, 30, 5), correlated(10, 40, 5)
    assert metrics.kernel_distance(a, b) == pytest.approx(metrics.kernel_distance(b, a))
    # Unbiased: over many pairs of sets of one distribution the estimates average to zero, which the
    # biased estimate (about 2 E[k(x, x)] / 20 here) would not.
    values = torch.tensor(
        [metrics.kernel_distance(gaussian(s, 20, 4), gaussian(s + 9999, 20, 4)) for s in range(400)]
    )
    assert abs(values.mean()) < 4 * values.std() / 20
    assert (values < 0).any()


def test_kernel_distance_error_is_the_spread_of_block_estimates() -> None:
    a, b = gaussian(0, 6, 3), gaussian(1, 6, 3)
    one, two = (metrics.kernel_distance(a[i : i + 3], b[i : i + 3]) for i in (0, 3))
    # Two values: standard deviation |u - v| / sqrt(2), over sqrt(2) blocks.
    expected = abs(one - two) / 2
    assert metrics.kernel_distance_error(a, b, blocks=2) == pytest.approx(expected)
    with pytest.raises(ValueError, match="do not fill 4 blocks"):
        metrics.kernel_distance_error(a, b, blocks=4)


def test_distances_grow_with_noise_and_with_blur() -> None:
    images = pictures(300)
    noise = gaussian(5, *images.shape).float()
    noisy = [images, *((images + level / 127.5 * noise).clamp(-1, 1) for level in (5, 15))]
    blurred = [
        images,
        *(
            torch.from_numpy(scipy.ndimage.gaussian_filter(images.numpy(), (0, 0, s, s)))
            for s in (0.7, 1.4)
        ),
    ]
    for series in (noisy, blurred):
        flat = [x.flatten(1) for x in series]
        frechet = [metrics.frechet_distance(flat[0], x) for x in flat]
        mse = [metrics.same_noise_mse(images, x) for x in series]
        likeness = [metrics.ssim(images, x) for x in series]
        assert frechet[0] < 1e-9 < 1e-3 < frechet[1] < frechet[2]
        assert 0 == mse[0] < mse[1] < mse[2]
        assert likeness[0] == pytest.approx(1) and likeness[0] > likeness[1] > likeness[2]
    kernel = [metrics.kernel_distance(images.flatten(1), x.flatten(1)) for x in noisy]
    assert kernel[0] < kernel[2]


@pytest.mark.parametrize("distance", [metrics.frechet_distance, metrics.kernel_distance])
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (torch.full((4, 3), math.nan), "nan or infinite"),
        (torch.tensor([[1.0, math.inf, 0.0]] * 4), "nan or infinite"),
        (torch.zeros(1, 3), "N >= 2"),
        (torch.zeros(0, 3), "N >= 2"),
        (torch.zeros(4), "N >= 2"),
        (torch.zeros(4, 5), "differ in width"),
    ],
)
def test_features_that_have_no_distance_are_refused(distance, bad, words) -> None:  # type: ignore[no-untyped-def]
    good = gaussian(0, 4, 3)
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(ValueError, match=words):
            distance(*pair)


def test_mse_of_black_and_white_is_four() -> None:
    black = -torch.ones(3, 1, 4, 4)
    assert metrics.same_noise_mse(black, -black) == 4
    one = black.clone()
    one[0, 0, 0, 0] = 0.0
    assert metrics.same_noise_mse(black, one) == pytest.approx(1 / 48)


def slow_ssim(a: np.ndarray, b: np.ndarray, data_range: float) -> float:
    """One pair of (H, W): every window by itself, with weighted sums around weighted means."""
    r = np.arange(11) - 5
    w = np.exp(-(r[:, None] ** 2 + r[None, :] ** 2) / (2 * 1.5**2))
    w /= w.sum()
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            x, y = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            mx, my = (w * x).sum(), (w * y).sum()
            vx, vy = (w * (x - mx) ** 2).sum(), (w * (y - my) ** 2).sum()
            cov = (w * (x - mx) * (y - my)).sum()
            values.append(
                (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
            )
    return float(np.mean(values))


@pytest.mark.parametrize("data_range", [2.0, 1.0])
def test_ssim_equals_window_by_window_sums(
    data_range: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_IMAGES", 2)
    a = torch.cat([pictures(3, 20), pictures(3, 20).flip(0)], 1).double()[..., :14]
    b = (a + 0.2 * gaussian(1, *a.shape)).clamp(-1, 1)
    expected = np.mean(
        [slow_ssim(a[i, c].numpy(), b[i, c].numpy(), data_range) for i in range(3) for c in (0, 1)]
    )
    got = metrics.ssim(a, b, data_range=data_range)
    assert got == pytest.approx(expected, abs=1e-12)
    assert metrics.ssim(b, a, data_range=data_range) == pytest.approx(got, abs=1e-12)


def test_ssim_of_constants_is_the_luminance_term() -> None:
    a = torch.full((1, 1, 11, 11), 0.5)
    b = torch.full((1, 1, 11, 11), -0.5)
    c1 = 0.02**2
    assert metrics.ssim(a, b) == pytest.approx((-0.5 + c1) / (0.5 + c1))


@pytest.mark.parametrize("measure", [metrics.same_noise_mse, metrics.ssim])
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (torch.zeros(2, 1, 12, 13), "one shape"),
        (torch.zeros(2, 12, 12), "one shape"),
        (torch.zeros(0, 1, 12, 12), "one shape"),
        (torch.zeros(2, 1, 12, 12, dtype=torch.uint8), "floating point"),
        (torch.full((2, 1, 12, 12), math.inf), "nan or infinite"),
    ],
)
def test_images_that_cannot_be_compared_are_refused(measure, bad, words) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=words):
        measure(torch.zeros(2, 1, 12, 12), bad)


def test_ssim_refuses_small_images_and_a_range_of_nothing() -> None:
    small, fair = torch.zeros(1, 1, 10, 20), torch.zeros(1, 1, 12, 12)
    with pytest.raises(ValueError, match="at least 11x11"):
        metrics.ssim(small, small)
    for data_range in (0.0, math.nan, -1.0):
        with pytest.raises(ValueError, match="positive number"):
            metrics.ssim(fair, fair, data_range=data_range)
