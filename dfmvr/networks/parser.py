"""The face parser: a trained BiSeNet that is only ever used, never trained on.

A parser is a folder with `weights.safetensors` and `model.json`, as other models are (networks/weights.py).
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from dfmvr.networks.bisenet import BiSeNet, ParserNetworkSettings
from dfmvr.networks.weights import CARD_FILE, WEIGHTS_FILE, WeightsError, load_weights, save_weights

SHIPPED = "shipped"
SHIPPED_FOLDER = Path(__file__).parent.parent / "weights" / "parser"
_KIND = "face parser"
_FORMAT = 1


@dataclass(frozen=True)
class ParserSettings:
    """The face parser: what is trained by ray_jobs.pretrain_parser, and what the mask loss uses."""

    network: ParserNetworkSettings = field(default_factory=ParserNetworkSettings)
    celebamask_hq: str = ""
    """Local folder of CelebAMask-HQ to train on; empty: the data set at data.uri."""
    weights: str = SHIPPED
    """The parser that losses.mask_source: parser uses: `shipped`, or a local folder such as RUN/model."""

    def __post_init__(self) -> None:
        if not self.weights:
            raise ValueError(f"parser.weights: expected a folder or {SHIPPED!r}, got an empty string")


@dataclass(frozen=True)
class ParserCard:
    """What one must know to use a trained parser."""

    network: ParserNetworkSettings
    trained_on: str
    """Address of the data."""
    run_id: str
    step: int
    """Optimiser steps behind these weights."""
    config_hash: str
    licence: str
    metrics: dict[str, float] = field(default_factory=dict)
    """Intersection over union of each region, and their mean."""
    weights_hash: str = ""
    """SHA-256 of the weights file; filled in by `save_parser`."""


class FaceParser:
    """Labels the pixels of pictures.

    It is no module: nothing that trains, moves or saves a module around it can reach its network, which stays
    in eval mode and without gradients of its own.

    Args:
        network: trained; it is frozen.
        image_size: pixels a side at which the network looks at pictures.
    """

    def __init__(self, network: BiSeNet, image_size: int) -> None:
        self._network = network.eval().requires_grad_(False)
        self._image_size = image_size

    @classmethod
    def load(cls, where: str | Path = SHIPPED) -> Self:
        """Load a parser from its folder, or the one shipped with the package.

        Raises:
            WeightsError: a file is missing or damaged, or the weights do not fit.
        """
        folder = SHIPPED_FOLDER if str(where) == SHIPPED else Path(where)
        card = read_parser_card(folder)
        network = BiSeNet(card.network)
        load_weights(network, folder / WEIGHTS_FILE, card.weights_hash)
        return cls(network, card.network.image_size)

    def to(self, device: torch.device | str) -> Self:
        """Return a parser on `device`; its network moves."""
        self._network.to(device)
        return self

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "*L 3 H W"]) -> Int[Tensor, "*L H W"]:
        """Return the region labels 0-9 of pictures in [0, 1]."""
        return self._scores(images).argmax(-3)

    def probabilities(self, images: Float[Tensor, "*L 3 H W"]) -> Float[Tensor, "*L R H W"]:
        """Return each region's probability; gradients reach the pictures."""
        return self._scores(images).softmax(-3)

    def _scores(self, images: Tensor) -> Tensor:
        """Scale to the network's size and the scores back to the picture's."""
        *leading, channels, height, width = images.shape
        if channels != 3 or min(height, width) < 1:
            raise ValueError(f"images: expected shape [*L, 3, H, W], got {tuple(images.shape)}")
        flat = images.reshape(-1, channels, height, width)
        scaled = functional.interpolate(flat, (self._image_size,) * 2, mode="bilinear", antialias=True)
        scores: Tensor = self._network(scaled)
        scores = functional.interpolate(scores, (height, width), mode="bilinear")
        return scores.reshape(*leading, -1, height, width)


def save_parser(directory: str | Path, network: BiSeNet, card: ParserCard) -> ParserCard:
    """Write a parser's folder, made where missing; return the card as written, `weights_hash` filled in."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    card = dataclasses.replace(card, weights_hash=save_weights(network, folder / WEIGHTS_FILE))
    content = {"kind": _KIND, "format": _FORMAT, **dataclasses.asdict(card)}
    (folder / CARD_FILE).write_text(json.dumps(content, indent=2) + "\n")
    return card


def read_parser_card(directory: str | Path) -> ParserCard:
    """Read the card of a parser's folder.

    Raises:
        WeightsError: it is missing, not JSON, of another kind or format.
    """
    path = Path(directory) / CARD_FILE
    if not path.is_file():
        raise WeightsError(
            f"{path}: no such file; expected a parser's folder, as ray_jobs.pretrain_parser writes RUN/model"
        )
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        kind = (content.pop("kind", "other model"), content.pop("format", None))
        if kind != (_KIND, _FORMAT):
            raise WeightsError(f"{path}: expected a {_KIND} of format {_FORMAT}, got {kind[0]}, {kind[1]}")
        content["network"] = ParserNetworkSettings(**content["network"])
        return ParserCard(**content)
    except WeightsError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: not a parser's card: {error}") from error
