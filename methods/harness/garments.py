"""Fashion-MNIST's garments in two colours, with captions: "a red coat on a yellow background".

Real photographs, tinted: alignment with a caption can be measured exactly (the garment by a
classifier, the colours by pixels), which the captions of photographs on the web do not allow.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .data import CLASS_NAMES, ImageSet, Splits, fashion_mnist

COLOURS = {  # RGB, 0..255; far enough apart in hue to be told from each other when shaded
    "red": (215, 40, 40),
    "orange": (240, 130, 20),
    "yellow": (245, 220, 50),
    "green": (40, 150, 65),
    "cyan": (60, 200, 210),
    "blue": (40, 80, 210),
    "purple": (140, 55, 175),
    "white": (245, 245, 245),
}
COLOUR_NAMES = tuple(COLOURS)
SIZE = 32  # pixels; the photographs' 28 and a border of background
_SHADE = 0.3  # brightness of a garment's darkest pixel, as a fraction of its colour


@dataclass(frozen=True)
class Request:
    """What one caption asks for: indices into CLASS_NAMES and COLOUR_NAMES."""

    garment: int
    colour: int
    background: int

    @property
    def caption(self) -> str:
        words = CLASS_NAMES[self.garment]
        # Trousers are plural; nobody says "a trousers".
        pair = "" if words == "trousers" else f"{_article(COLOUR_NAMES[self.colour])} "
        back = COLOUR_NAMES[self.background]
        return f"{pair}{COLOUR_NAMES[self.colour]} {words} on {_article(back)} {back} background"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


@lru_cache(maxsize=1)
def requests() -> tuple[Request, ...]:
    """All 560: 10 garments, 8 colours, 7 other colours behind; the row number is the label."""
    count = len(COLOUR_NAMES)
    return tuple(
        Request(garment, colour, background)
        for garment in range(len(CLASS_NAMES))
        for colour in range(count)
        for background in range(count)
        if colour != background
    )


@lru_cache(maxsize=1)
def held_out() -> frozenset[int]:
    """Rows never trained on, 63 of 560: every word and every pair of colours is seen elsewhere."""
    return frozenset(
        row
        for row, request in enumerate(requests())
        if (request.garment + 3 * request.colour + 5 * request.background) % 9 == 0
    )


@dataclass(frozen=True)
class TintedSet:
    """Grey photographs with the row of a caption each; colours are put on when they are taken."""

    grey: ImageSet
    rows: Tensor  # (N,) rows of `requests()`

    @property
    def labels(self) -> Tensor:
        return self.rows

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: Tensor) -> Tensor:
        """Tinted images (B, 3, 32, 32) in [-1, 1]."""
        table = requests()
        chosen = [table[int(row)] for row in self.rows[index]]
        palette = torch.tensor(list(COLOURS.values())) / 255
        colour = palette[[request.colour for request in chosen]]
        background = palette[[request.background for request in chosen]]
        return tint(self.grey.images[index], colour, background)


def tint(grey: Tensor, colour: Tensor, background: Tensor) -> Tensor:
    """Grey garments (B, 1, 28, 28) in [-1, 1] as colour (B, 3) on background (B, 3), both 0..1.

    The photographs lie on black: a pixel belongs to the garment as far as it is not black, and its
    brightness there is the garment's shading. Returns (B, 3, 32, 32) in [-1, 1].
    """
    border = (SIZE - grey.shape[-1]) // 2
    level = F.pad((grey + 1) / 2, (border,) * 4)  # (B, 1, 32, 32) in 0..1
    # A garment's dark inside is no hole: what its neighbours cover is covered.
    near = F.max_pool2d(level, 3, stride=1, padding=1)
    cover = (8 * torch.minimum(near, level + 0.06)).clamp(0, 1)
    shaded = colour[:, :, None, None] * (_SHADE + (1 - _SHADE) * level)
    return 2 * (cover * shaded + (1 - cover) * background[:, :, None, None]) - 1


@lru_cache(maxsize=1)
def tinted_garments() -> Splits:
    """Fashion-MNIST's splits, each photograph in fixed colours; training lacks `held_out`.

    Raises:
        DataUnavailable: as `fashion_mnist`.
    """
    grey = fashion_mnist()
    return Splits(
        train=_tinted(grey.train, seed=1, allow_held_out=False),
        calibration=_tinted(grey.calibration, seed=2, allow_held_out=False),
        reference=_tinted(grey.reference, seed=3, allow_held_out=True),
    )


def _tinted(images: object, seed: int, allow_held_out: bool) -> TintedSet:
    assert isinstance(images, ImageSet)
    draw = torch.Generator().manual_seed(seed)
    rows = torch.empty(len(images), dtype=torch.long)
    barred = frozenset() if allow_held_out else held_out()
    for garment in range(len(CLASS_NAMES)):
        choices = torch.tensor(
            [
                row
                for row, request in enumerate(requests())
                if request.garment == garment and row not in barred
            ]
        )
        mine = torch.nonzero(images.labels == garment).flatten()
        order = torch.randperm(len(mine), generator=draw)
        rows[mine[order]] = choices[torch.arange(len(mine)) % len(choices)]
    return TintedSet(images, rows)
