"""Does an image show what was asked for? The garment by a classifier, the colours by pixels."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .garments import COLOURS, SIZE, requests
from .zoo import MODELS

CLASSIFIER = MODELS / "garment_classifier"
WEIGHTS = "model.safetensors"
_BORDER = 3  # pixels at the edge that are background in almost every photograph
_APART = 0.25  # distance (RGB, 0..1) from the background at which a pixel is garment


class GarmentClassifier(nn.Module):
    """A small convolutional network: (B, 3, 32, 32) in [-1, 1] -> (B, 10) logits."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [
                nn.Conv2d(before, after, 3, padding=1),
                nn.BatchNorm2d(after),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * width, 10))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits


def load_classifier(folder: Path = CLASSIFIER) -> GarmentClassifier:
    """The shipped classifier, trained on real photographs only.

    Raises:
        FileNotFoundError: it is not there; scripts/train_classifier.py makes it.
    """
    from .checkpoint import read_tensors

    path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; run scripts/train_classifier.py")
    tensors, _ = read_tensors(path)
    model = GarmentClassifier()
    model.load_state_dict(
        {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    )
    return model.eval().requires_grad_(False)


def as_colour(images: Tensor) -> Tensor:
    """What the classifier reads: (B, 3, 32, 32); grey 28x28 becomes white on black."""
    if images.shape[1] == 1:
        border = (SIZE - images.shape[-1]) // 2
        images = F.pad(images, (border,) * 4, value=-1.0).expand(-1, 3, -1, -1)
    return images


@torch.no_grad()
def classify(model: GarmentClassifier, images: Tensor, batch_size: int = 250) -> Tensor:
    """Class probabilities (B, 10) of images (B, 1, 28, 28) or (B, 3, 32, 32) in [-1, 1]."""
    device = next(model.parameters()).device
    parts = [model(as_colour(part).to(device)) for part in images.split(batch_size)]
    return torch.cat(parts).softmax(dim=1).cpu()


def colours(images: Tensor) -> tuple[Tensor, Tensor]:
    """Palette indices (B,) of garment and background in images (B, 3, 32, 32) in [-1, 1].

    The background is the median of the border, matched by nearest colour. Garment pixels are those
    far from it; their colour is matched by direction in RGB, which shading leaves as it is. An
    image without garment pixels gets -1.
    """
    palette = torch.tensor(list(COLOURS.values())) / 255  # (K, 3)
    rgb = (images.clamp(-1, 1) + 1) / 2
    edge = torch.ones(rgb.shape[-2:], dtype=torch.bool)
    edge[_BORDER:-_BORDER, _BORDER:-_BORDER] = False
    behind = rgb[:, :, edge].median(dim=2).values  # (B, 3)
    background = torch.cdist(behind, palette).argmin(dim=1)
    far = (rgb - behind[:, :, None, None]).square().sum(dim=1).sqrt() > _APART  # (B, H, W)
    inside = (rgb * far[:, None]).sum(dim=(2, 3))  # bright pixels count for more than dark ones
    directions = F.normalize(inside, dim=1) @ F.normalize(palette, dim=1).T
    garment = directions.argmax(dim=1)
    return torch.where(far.flatten(1).sum(dim=1) >= 8, garment, -1), background


def agreement(model: GarmentClassifier, images: Tensor, rows: Tensor) -> dict[str, float]:
    """Fractions of images that agree with what was asked for.

    Grey images are asked for by class; colour images by caption row, and agree in `class`,
    `colour`, `background` and in `all` three.
    """
    found = classify(model, images).argmax(dim=1)
    if images.shape[1] == 1:
        return {"class": float((found == rows).float().mean())}
    wanted = torch.tensor(
        [
            (request.garment, request.colour, request.background)
            for request in (requests()[int(row)] for row in rows)
        ]
    )
    garment, background = colours(images)
    right = torch.stack([found, garment, background], dim=1) == wanted
    means = right.float().mean(dim=0).tolist()
    names = ("class", "colour", "background")
    return dict(zip(names, means, strict=True)) | {"all": float(right.all(dim=1).float().mean())}


def surprise(model: GarmentClassifier, images: Tensor, rows: Tensor) -> float:
    """Mean -log p(garment asked for): as `class` of `agreement`, but smooth. 0 is the best."""
    wanted = rows if images.shape[1] == 1 else torch.tensor([requests()[r].garment for r in rows])
    right = classify(model, images)[torch.arange(len(images)), wanted]
    return float(-right.clamp_min(1e-6).log().mean())


def overall(fractions: Mapping[str, float]) -> float:
    """One figure of `agreement`: garment and both colours where colours were asked for."""
    return fractions["all"] if "all" in fractions else fractions["class"]
