"""Fashion-MNIST from the first source that works, checked by hash whatever the source.

Xiao, Rasul and Vollgraf 2017 (arXiv 1708.07747), MIT licence: 60,000 + 10,000 grey product
photographs of 28x28 pixels in 10 classes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

CLASS_NAMES = (
    "t-shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
CALIBRATION_SIZE = 2_000

# sha256 of the decoded pixels and labels (uint8, C order): the same for every source.
_SHA256 = {
    "train_images": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
    "train_labels": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
    "test_images": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
    "test_labels": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
}
_SHAPES = {
    "train_images": (60_000, 28, 28),
    "train_labels": (60_000,),
    "test_images": (10_000, 28, 28),
    "test_labels": (10_000,),
}
_DEBIAN_PACKAGE = "dataset-fashion-mnist"
_DEBIAN_FOLDER = "usr/share/datasets/fashion-mnist"
_DEBIAN_FILES = {
    "train_images": "train-images-idx3-ubyte.gz",
    "train_labels": "train-labels-idx1-ubyte.gz",
    "test_images": "t10k-images-idx3-ubyte.gz",
    "test_labels": "t10k-labels-idx1-ubyte.gz",
}
_HUB_REPOSITORY = "zalando-datasets/fashion_mnist"
_HUB_REVISION = "531be5e2ccc9dba0c201ad3ae567a4f3d16ecdd2"

Arrays = dict[str, np.ndarray]


class DataUnavailable(RuntimeError):
    """No source gave the data set; the message lists what each said and the mend."""


class Images(Protocol):
    """A set of images with what each shows; images may be made when they are taken."""

    @property
    def labels(self) -> Tensor:
        """(N,) integers: classes, or rows of captions."""

    def __len__(self) -> int: ...

    def take(self, index: Tensor) -> Tensor:
        """Images at `index` (B,), float32 (B, C, H, W) in [-1, 1]."""


@dataclass(frozen=True)
class ImageSet:
    """Images in [-1, 1] as float32 (N, C, H, W) with integer labels (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: Tensor) -> Tensor:
        return self.images[index]


@dataclass(frozen=True)
class Splits:
    """Disjoint sets: training, calibration (scores), reference (never trained on)."""

    train: Images
    calibration: Images
    reference: Images


def cache_folder() -> Path:
    """Where downloads are kept: $DIFFUSION_PRUNING_CACHE or ~/.cache/diffusion-pruning."""
    chosen = os.environ.get("DIFFUSION_PRUNING_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "diffusion-pruning"


@lru_cache(maxsize=1)
def fashion_mnist() -> Splits:
    """The three splits, always the same: 58,000 training, 2,000 calibration, 10,000 reference.

    Calibration images are 200 of each class, drawn from the 60,000 by a fixed permutation and
    removed from training; the reference is the official test set.

    Raises:
        DataUnavailable: no source worked or every source failed its hash.
    """
    arrays = _load_arrays()
    order = np.random.Generator(np.random.PCG64(20170828)).permutation(60_000)
    labels = arrays["train_labels"][order]
    per_class = CALIBRATION_SIZE // len(CLASS_NAMES)
    is_calibration = np.zeros(60_000, dtype=bool)
    for label in range(len(CLASS_NAMES)):
        is_calibration[np.flatnonzero(labels == label)[:per_class]] = True

    def split(prefix: str, index: np.ndarray) -> ImageSet:
        pixels = torch.from_numpy(arrays[f"{prefix}_images"][index])
        return ImageSet(
            images=pixels.float().div_(127.5).sub_(1.0).unsqueeze(1),  # (N, 1, 28, 28)
            labels=torch.from_numpy(arrays[f"{prefix}_labels"][index]).long(),
        )

    return Splits(
        train=split("train", order[~is_calibration]),
        calibration=split("train", order[is_calibration]),
        reference=split("test", np.arange(10_000)),
    )


def _load_arrays() -> Arrays:
    cached = cache_folder() / "fashion-mnist.npz"
    sources: list[tuple[str, Callable[[], Arrays]]] = [
        ("cache", lambda: _read_cache(cached)),
        ("Debian package, installed", lambda: _read_idx_folder(Path("/") / _DEBIAN_FOLDER)),
        ("Debian package, fetched", _fetch_debian),
        ("Hugging Face hub", _fetch_hub),
    ]
    failures = []
    for name, read in sources:
        try:
            arrays = read()
            _check(arrays)
        except (OSError, ValueError, KeyError, RuntimeError, subprocess.SubprocessError) as error:
            failures.append(f"{name}: {(str(error) or repr(error)).splitlines()[0]}")
            continue
        if name != "cache":
            _write_cache(cached, arrays)
        return arrays
    raise DataUnavailable(
        "Fashion-MNIST is not available ("
        + "; ".join(failures)
        + f"). Mend: `apt-get install {_DEBIAN_PACKAGE}`, or allow https access to the "
        "Hugging Face hub, or copy fashion-mnist.npz from another machine into "
        f"{cache_folder()}"
    )


def _check(arrays: Arrays) -> None:
    for key, expected in _SHA256.items():
        array = arrays[key]
        if array.shape != _SHAPES[key] or array.dtype != np.uint8:
            raise ValueError(f"{key} is {array.dtype}{array.shape}, expected uint8{_SHAPES[key]}")
        found = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        if found != expected:
            raise ValueError(f"{key} has sha256 {found[:12]}…, expected {expected[:12]}…")


def _read_cache(path: Path) -> Arrays:
    if not path.is_file():
        raise FileNotFoundError("empty")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {key: stored[key] for key in _SHA256}
    except Exception as error:  # numpy raises zipfile, zlib and value errors on damaged files
        raise ValueError(f"damaged file {path.name} ({type(error).__name__})") from error


def _write_cache(path: Path, arrays: Arrays) -> None:
    """Keep a copy; a read-only home is not an error, the next run fetches again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(path)
    except OSError:
        return


def _read_idx_folder(folder: Path) -> Arrays:
    if not folder.is_dir():
        raise FileNotFoundError(f"/{_DEBIAN_FOLDER} does not exist")
    return {key: read_idx((folder / name).read_bytes()) for key, name in _DEBIAN_FILES.items()}


def read_idx(data: bytes) -> np.ndarray:
    """Decode a gzip-compressed IDX file of unsigned bytes (big-endian sizes, C order)."""
    raw = gzip.decompress(data)
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise ValueError("not an IDX file of unsigned bytes")
    dimensions = raw[3]
    shape = tuple(int(n) for n in np.frombuffer(raw, ">u4", dimensions, 4))
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _fetch_debian() -> Arrays:
    """Download the package with apt and unpack it in a temporary folder; needs no root."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise RuntimeError("apt-get and dpkg-deb are not on this machine")
    with tempfile.TemporaryDirectory() as folder:
        result = _apt_download(folder)
        if result.returncode and os.geteuid() == 0:
            # A new Debian machine has no package list yet.
            subprocess.run(["apt-get", "update", "-qq"], capture_output=True, timeout=300)
            result = _apt_download(folder)
        packages = list(Path(folder).glob("*.deb"))
        if result.returncode or not packages:
            detail = result.stderr.strip().splitlines() or ["apt-get download failed"]
            raise RuntimeError(detail[-1])
        subprocess.run(["dpkg-deb", "-x", str(packages[0]), folder], check=True, timeout=120)
        return _read_idx_folder(Path(folder) / _DEBIAN_FOLDER)


def _apt_download(folder: str) -> subprocess.CompletedProcess[str]:
    # The sandbox user of apt cannot write into our private temporary folder.
    return subprocess.run(
        ["apt-get", "-o", "APT::Sandbox::User=root", "download", "-qq", _DEBIAN_PACKAGE],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


def _fetch_hub() -> Arrays:
    import pyarrow.parquet
    from huggingface_hub import hf_hub_download
    from PIL import Image

    arrays: Arrays = {}
    for split in ("train", "test"):
        path = hf_hub_download(
            _HUB_REPOSITORY,
            f"fashion_mnist/{split}-00000-of-00001.parquet",
            repo_type="dataset",
            revision=_HUB_REVISION,
            cache_dir=cache_folder() / "hub",
        )
        table = pyarrow.parquet.read_table(path)
        pngs = table.column("image").to_pylist()
        arrays[f"{split}_images"] = np.stack(
            [np.asarray(Image.open(io.BytesIO(png["bytes"])).convert("L")) for png in pngs]
        )
        arrays[f"{split}_labels"] = table.column("label").to_numpy().astype(np.uint8)
    return arrays
