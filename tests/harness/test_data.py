"""Fashion-MNIST: decoding, sources in order, hashes whatever the source."""

from __future__ import annotations

import gzip
import hashlib

import numpy as np
import pytest

from methods.harness import data


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(header + array.tobytes())


def test_idx_is_decoded():
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert np.array_equal(data.read_idx(idx(array)), array)


@pytest.mark.parametrize("content", [b"", b"\x00\x00\x0d\x01", b"nonsense", b"\x00\x00\x08\x01"])
def test_foreign_files_are_refused(content):
    with pytest.raises(ValueError, match=r"IDX|buffer"):
        data.read_idx(gzip.compress(content))


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A stand-in data set with hashes of its own, and an empty cache."""
    rng = np.random.Generator(np.random.PCG64(0))
    arrays = {
        "train_images": rng.integers(0, 256, (20, 28, 28), dtype=np.uint8),
        "train_labels": rng.integers(0, 10, 20, dtype=np.uint8),
        "test_images": rng.integers(0, 256, (10, 28, 28), dtype=np.uint8),
        "test_labels": rng.integers(0, 10, 10, dtype=np.uint8),
    }
    hashes = {key: hashlib.sha256(a.tobytes()).hexdigest() for key, a in arrays.items()}
    monkeypatch.setattr(data, "_SHA256", hashes)
    monkeypatch.setattr(data, "_SHAPES", {key: a.shape for key, a in arrays.items()})
    monkeypatch.setenv("DIFFUSION_PRUNING_CACHE", str(tmp_path / "cache"))

    def unavailable():
        raise OSError("not reachable")

    monkeypatch.setattr(data, "_read_idx_folder", lambda folder: unavailable())
    monkeypatch.setattr(data, "_fetch_debian", unavailable)
    monkeypatch.setattr(data, "_fetch_hub", unavailable)
    return arrays


def same(a, b):
    return all(np.array_equal(a[key], b[key]) for key in a)


def test_the_first_source_that_works_is_cached(small, monkeypatch):
    calls = []
    monkeypatch.setattr(data, "_fetch_hub", lambda: calls.append("hub") or small)
    assert same(small, data._load_arrays())
    assert same(small, data._load_arrays())
    assert calls == ["hub"], "the second time the cache answers"


def test_a_source_with_wrong_content_is_passed_over(small, monkeypatch):
    wrong = {key: np.zeros_like(value) for key, value in small.items()}
    monkeypatch.setattr(data, "_fetch_debian", lambda: wrong)
    monkeypatch.setattr(data, "_fetch_hub", lambda: small)
    assert same(small, data._load_arrays())


def test_a_damaged_cache_is_replaced(small, monkeypatch):
    monkeypatch.setattr(data, "_fetch_hub", lambda: small)
    data._load_arrays()
    path = data.cache_folder() / "fashion-mnist.npz"
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"rubbish"):
        path.write_bytes(damaged)
        assert same(small, data._load_arrays())
        assert path.read_bytes() == content or data._read_cache(path)


def test_one_clear_error_when_nothing_works(small):
    with pytest.raises(data.DataUnavailable) as caught:
        data._load_arrays()
    message = str(caught.value)
    assert "\n" not in message
    assert "apt-get install dataset-fashion-mnist" in message
    for source in ("cache: empty", "Debian package, installed", "fetched", "Hugging Face hub"):
        assert source in message


def test_splits_are_disjoint_balanced_and_fixed():
    splits = data.fashion_mnist()
    assert (len(splits.train), len(splits.calibration), len(splits.reference)) == (
        58_000,
        2_000,
        10_000,
    )
    assert splits.calibration.labels.bincount().tolist() == [200] * 10
    for part in (splits.train, splits.calibration, splits.reference):
        assert part.images.shape[1:] == (1, 28, 28)
        assert float(part.images.min()) == -1.0
        assert float(part.images.max()) == 1.0
    pixels = (splits.calibration.images * 127.5 + 127.5).round().byte().numpy().tobytes()
    assert hashlib.sha256(pixels).hexdigest() == EXPECTED


EXPECTED = "4714e0d2e39fd3acdbe2504f2ad5cef8f59d248dca61ad2e839033ae49615b8c"
