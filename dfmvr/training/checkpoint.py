"""A training checkpoint: a folder from which a run goes on exactly where it was.

    weights.safetensors     the network: parameters and buffers
    optimiser.safetensors   the optimiser's tensors, named PARAMETER/KEY
    state.json              everything else: position in the data, settings, hashes, metrics, versions
    manifest.json           SHA-256 of the others; written last, so that a folder without it is unfinished

Nothing is pickled. Random numbers need no state: order and augmentation are functions of the seed and of the
position in the data.
"""

from __future__ import annotations

import dataclasses
import json
import platform
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dfmvr.networks.weights import WEIGHTS_FILE, file_hash, load_weights, save_weights

OPTIMISER_FILE = "optimiser.safetensors"
STATE_FILE = "state.json"
MANIFEST_FILE = "manifest.json"
FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint is unfinished, damaged, or of another run; the message names file, expected and got."""


@dataclass(frozen=True)
class TrainingState:
    """Everything of a run that is not a tensor."""

    run_id: str
    step: int = 0
    """Optimiser steps done."""
    epoch: int = 0
    """Epochs finished: the epoch to go on with."""
    samples_in_epoch: int = 0
    """Samples of that epoch already used, over all workers."""
    skipped_steps: int = 0
    failed_checkpoints: int = 0
    """Checkpoints given up because the storage failed."""
    seconds: float = 0.0
    """Time spent training, over all starts of the run."""
    history: tuple[dict[str, float], ...] = ()
    """Figures of every finished epoch."""
    settings: dict[str, Any] = field(default_factory=dict)
    config_hash: str = ""
    face_model_hash: str = ""
    seed: int = 0
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name for the checkpoint's folder; names sort by time."""
        return f"epoch-{self.epoch:05d}-sample-{self.samples_in_epoch:09d}"

    @property
    def validation(self) -> dict[str, float]:
        """Figures of the newest finished epoch, or nothing inside an epoch."""
        return self.history[-1] if self.history and not self.samples_in_epoch else {}


def library_versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    names = ("dfmvr", "torch", "numpy", "numba", "kornia", "safetensors", "ray")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def save_checkpoint(
    directory: str | Path, network: nn.Module, optimiser: torch.optim.Optimizer, state: TrainingState
) -> None:
    """Write a checkpoint into a local folder.

    Args:
        directory: made where missing.
        network: the network, not wrapped for distributed training.
        optimiser: over the network's parameters.
        state: the rest.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    hashes = {WEIGHTS_FILE: save_weights(network, folder / WEIGHTS_FILE)}
    save_file(_optimiser_tensors(network, optimiser), folder / OPTIMISER_FILE)
    content = {"format": FORMAT, **dataclasses.asdict(state)}
    (folder / STATE_FILE).write_text(json.dumps(content, indent=1))
    hashes |= {name: file_hash(folder / name) for name in (OPTIMISER_FILE, STATE_FILE)}
    (folder / MANIFEST_FILE).write_text(json.dumps(hashes, indent=1))


def check_files(directory: str | Path) -> None:
    """Compare a checkpoint's files with its manifest.

    Raises:
        CheckpointError: the manifest or a file is missing, or a file has changed.
    """
    folder = Path(directory)
    if not (folder / MANIFEST_FILE).is_file():
        raise CheckpointError(f"{folder}: unfinished checkpoint, it has no {MANIFEST_FILE}")
    for name, expected in json.loads((folder / MANIFEST_FILE).read_text()).items():
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name}: listed in {MANIFEST_FILE} but missing")
        got = file_hash(folder / name)
        if got != expected:
            raise CheckpointError(f"{folder / name}: damaged: expected sha256 {expected}, got {got}")


def read_state(directory: str | Path) -> TrainingState:
    """Read the state of a checkpoint.

    Raises:
        CheckpointError: the file is missing or of another format.
    """
    path = Path(directory) / STATE_FILE
    try:
        return parse_state(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a checkpoint's state: {error}") from error


def parse_state(text: str) -> TrainingState:
    """Parse the content of a `state.json`.

    Raises:
        CheckpointError: not JSON, of another format, or with other fields.
    """
    try:
        content: dict[str, Any] = json.loads(text)
        version = content.pop("format", None)
        if version != FORMAT:
            raise CheckpointError(f"expected checkpoint format {FORMAT}, got {version}")
        return TrainingState(**{**content, "history": tuple(content["history"])})
    except CheckpointError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"not a checkpoint's state: {error}") from error


def load_checkpoint(
    directory: str | Path, network: nn.Module, optimiser: torch.optim.Optimizer
) -> TrainingState:
    """Restore network and optimiser from a local checkpoint folder, after checking its files.

    Raises:
        CheckpointError: the folder is damaged or its optimiser does not fit.
        WeightsError: the weights do not fit the network.
    """
    check_files(directory)
    folder = Path(directory)
    state = read_state(folder)
    load_weights(network, folder / WEIGHTS_FILE)
    _load_optimiser(folder / OPTIMISER_FILE, network, optimiser)
    return state


def _optimiser_tensors(network: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in network.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value.detach().cpu().contiguous()
        for parameter, values in optimiser.state.items()
        for key, value in values.items()
    }


def _load_optimiser(path: Path, network: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Put stored tensors back; groups and learning rates come from the settings, not from the file."""
    tensors = load_file(path)
    parameters = dict(network.named_parameters())
    indices = {p: i for i, p in enumerate(p for group in optimiser.param_groups for p in group["params"])}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition("/")
        if name not in parameters or parameters[name] not in indices:
            raise CheckpointError(f"{path}: {full_name}: the network has no trained parameter {name!r}")
        if key != "step" and tensor.shape != parameters[name].shape:
            raise CheckpointError(
                f"{path}: {full_name}: expected shape {tuple(parameters[name].shape)}, "
                f"got {tuple(tensor.shape)}"
            )
        if key != "step":
            # In the parameter's memory order: a fused optimiser takes no other.
            tensor = torch.empty_like(parameters[name], device="cpu").copy_(tensor)
        state.setdefault(indices[parameters[name]], {})[key] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
