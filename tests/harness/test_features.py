"""The feature network against values of an independent implementation, and its guards.

The expected numbers come from the package ``efficientnet-lite-pytorch`` 0.1.0, same weights.
"""

import json
from pathlib import Path

import matplotlib.cbook
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from methods.harness import features
from methods.harness.features import lite0_features, read_weights


def waves(size: int, channels: int = 3) -> Tensor:
    """A deterministic picture with edges and gradients, (1, channels, size, size)."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    planes = [
        torch.sin((4 + c) * x + 3 * y * y) * torch.cos(5 * y - c * x) for c in range(channels)
    ]
    return torch.where(x * x + y * y < 0.5, torch.stack(planes), -1.0).unsqueeze(0)


EXPECTED = {  # sums of the features over eight runs of 160, by side of waves()
    64: [105.538, 99.843, 118.725, 108.06, 110.021, 107.055, 90.469, 85.767],
    28: [112.208, 95.69, 117.539, 96.272, 99.718, 103.873, 83.637, 87.526],
}


@pytest.mark.parametrize("size", EXPECTED)
def test_features_equal_the_independent_implementation(size: int) -> None:
    found = lite0_features(waves(size))
    assert found.shape == (1, 1280)
    assert found.view(8, 160).sum(1).tolist() == pytest.approx(EXPECTED[size], abs=5e-3)
    weights = read_weights()
    assert (found @ weights["_fc.weight"].T + weights["_fc.bias"]).argmax().item() == 722


def test_a_photograph_is_recognised() -> None:
    """The portrait that ships with matplotlib is class 652, "military uniform"."""
    file = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    with Image.open(str(file)) as picture:
        pixels = np.asarray(picture.convert("RGB"))[:512, :512]
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).unsqueeze(0) / 127.5 - 1
    weights = read_weights()
    scores = lite0_features(image, size=224) @ weights["_fc.weight"].T + weights["_fc.bias"]
    assert scores.argmax().item() == 652


def test_grey_images_are_repeated_to_rgb() -> None:
    grey = waves(28, channels=1)
    torch.testing.assert_close(lite0_features(grey), lite0_features(grey.repeat(1, 3, 1, 1)))


def test_batches_do_not_mix() -> None:
    images = torch.cat([waves(28), -waves(28).flip(3), waves(28) * 0.3])
    together = lite0_features(images, batch_size=2)
    apart = torch.cat([lite0_features(image.unsqueeze(0)) for image in images])
    assert together.shape == (3, features.FEATURE_DIM)
    assert together.dtype == torch.float32
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)


def test_resizing_overshoot_is_clipped() -> None:
    # A bicubic kernel rings at a step between the extremes; a picture file could not hold that.
    step = torch.ones(1, 1, 8, 8)
    step[..., :4] = -1
    prepared = features._prepare(step, 64)
    assert prepared.min().item() == pytest.approx((0 - 127) / 128)
    assert prepared.max().item() == pytest.approx((255 - 127) / 128)


def test_bfloat16_is_close_to_single_precision() -> None:
    exact, rough = lite0_features(waves(64)), lite0_features(waves(64), dtype=torch.bfloat16)
    assert rough.dtype == torch.float32
    difference = ((rough - exact).norm() / exact.norm()).item()
    assert 0 < difference < 0.2


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(2, 28, 28), "N, 1 or 3, H, W"),
        (torch.zeros(1, 2, 28, 28), "N, 1 or 3, H, W"),
        (torch.zeros(0, 1, 28, 28), "none empty"),
        (torch.zeros(1, 1, 28, 28, dtype=torch.uint8), "floating point"),
        (torch.full((1, 1, 28, 28), 255.0), r"lie in \[-1, 1\]"),
        (torch.full((1, 1, 28, 28), float("nan")), r"lie in \[-1, 1\]"),
        (torch.full((1, 1, 28, 28), float("-inf")), r"lie in \[-1, 1\]"),
    ],
)
def test_images_of_another_kind_are_refused(images: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        lite0_features(images)


def test_impossible_sizes_are_refused() -> None:
    for size, batch_size in ((16, 50), (64, 0)):
        with pytest.raises(ValueError, match="at least"):
            lite0_features(torch.zeros(1, 1, 28, 28), size=size, batch_size=batch_size)


def test_a_missing_package_names_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "PACKAGE", "no-such-feature-package")
    with pytest.raises(RuntimeError, match=r"no-such-feature-package.*make setup"):
        read_weights()


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"not these weights", "has sha256 .* expected .*make setup"), (None, "lacks .*make setup")],
)
def test_another_file_is_refused_unread(
    content: bytes | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "other_weights"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    if content is not None:
        (tmp_path / "other_weights" / features._FILE).write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(features, "PACKAGE", "other-weights")
    with pytest.raises(RuntimeError, match=words):
        read_weights()


def test_the_protocol_fits_a_record() -> None:
    record = json.loads(json.dumps(dict(features.FEATURE_PROTOCOL)))
    assert record["weights_sha256"] == features.WEIGHTS_SHA256
    assert record["input_size"] == 64
