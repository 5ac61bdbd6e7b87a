"""A trained network on disk: its weights, and a card that says how to build and use it.

A model is a folder with `weights.safetensors` and `model.json`. Nothing here is pickled, and nothing is ever
filled in: a missing tensor, a wrong shape or a changed byte is an error.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from dfmvr.networks.face_network import build_network
from dfmvr.networks.settings import NetworkSettings

WEIGHTS_FILE = "weights.safetensors"
CARD_FILE = "model.json"
FORMAT = 1


class WeightsError(ValueError):
    """A model on disk is missing, damaged, or does not fit the network; the message names file and tensor."""


@dataclass(frozen=True)
class ModelCard:
    """What one must know to use trained weights."""

    network: NetworkSettings
    image_size: int
    """Height and width of the input views in pixels."""
    view_names: tuple[str, ...]
    """The views in the order of the network's encoders."""
    face_model_hash: str
    """Hash of the face model whose coefficients the network predicts."""
    face_model_level: int
    """Subdivision level of the face model in training."""
    run_id: str
    step: int
    """Optimiser steps behind these weights."""
    config_hash: str
    licence: str
    metrics: dict[str, float] = field(default_factory=dict)
    """Validation figures of these weights."""
    weights_hash: str = ""
    """SHA-256 of the weights file; filled in by `save_model`."""


def save_model(directory: str | Path, network: nn.Module, card: ModelCard) -> ModelCard:
    """Write a model folder.

    Args:
        directory: local folder, made where missing.
        network: the network, not wrapped for distributed training.
        card: its description; `weights_hash` is filled in.

    Returns:
        The card as written.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    card = dataclasses.replace(card, weights_hash=save_weights(network, folder / WEIGHTS_FILE))
    content = {"format": FORMAT, **dataclasses.asdict(card)}
    (folder / CARD_FILE).write_text(json.dumps(content, indent=2) + "\n")
    return card


def load_model(directory: str | Path) -> tuple[nn.Module, ModelCard]:
    """Build the network of a model folder and load its weights.

    Returns:
        The network, on the CPU and in eval mode, and its card.

    Raises:
        WeightsError: a file is missing or damaged, or the weights do not fit the network.
    """
    card = read_card(directory)
    network = build_network(card.network)
    load_weights(network, Path(directory) / WEIGHTS_FILE, card.weights_hash)
    return network.eval(), card


def read_card(directory: str | Path) -> ModelCard:
    """Read the card of a model folder.

    Raises:
        WeightsError: it is missing, not JSON, or of another format.
    """
    path = Path(directory) / CARD_FILE
    if not path.is_file():
        raise WeightsError(
            f"{path}: no such file; expected a model folder with {CARD_FILE} and {WEIGHTS_FILE}"
        )
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        version = content.pop("format")
        if version != FORMAT:
            raise WeightsError(f"{path}: expected format {FORMAT}, got {version}")
        content["network"] = NetworkSettings(**content["network"])
        content["view_names"] = tuple(content["view_names"])
        return ModelCard(**content)
    except WeightsError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: not a model card: {error}") from error


def save_weights(network: nn.Module, path: str | Path) -> str:
    """Write the network's parameters and buffers as safetensors.

    Returns:
        SHA-256 of the file.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, path)
    return file_hash(path)


def load_weights(network: nn.Module, path: str | Path, sha256: str | None = None) -> None:
    """Load weights into a network, all of them or none.

    Args:
        network: the network, not wrapped for distributed training.
        path: local safetensors file.
        sha256: expected hash of the file; None skips the check.

    Raises:
        WeightsError: the file is missing or damaged, or its tensors are not exactly the network's.
    """
    if not Path(path).is_file():
        raise WeightsError(f"{path}: no such weights file")
    if sha256 is not None and (got := file_hash(path)) != sha256:
        raise WeightsError(f"{path}: damaged or replaced: expected sha256 {sha256}, got {got}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a safetensors file: {error}") from error
    expected = network.state_dict()
    _check_names(path, set(expected), set(tensors))
    _check_shapes(path, expected, tensors)
    network.load_state_dict(tensors, strict=True)


def file_hash(path: str | Path) -> str:
    """Return the SHA-256 of a file as hex digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_names(path: str | Path, expected: set[str], got: set[str]) -> None:
    missing, surplus = sorted(expected - got), sorted(got - expected)
    if missing or surplus:
        raise WeightsError(
            f"{path}: does not fit the network: expected {len(expected)} tensors, got {len(got)}; "
            f"missing {missing[:3]}, unknown {surplus[:3]}"
        )


def _check_shapes(
    path: str | Path, expected: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]
) -> None:
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise WeightsError(
                f"{path}: {name}: expected shape {tuple(expected[name].shape)}, got {tuple(tensor.shape)}"
            )
