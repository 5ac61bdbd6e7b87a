from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from dfmvr.networks.weights import WeightsError
from dfmvr.training.checkpoint import (
    CheckpointError,
    TrainingState,
    check_files,
    library_versions,
    load_checkpoint,
    read_state,
    save_checkpoint,
)
from dfmvr.training.optim import OptimiserSettings, build_optimiser

STATE = TrainingState(
    run_id="r", step=7, epoch=2, samples_in_epoch=16, skipped_steps=1, failed_checkpoints=2, seconds=3.5,
    history=({"epoch": 1.0, "val_loss": 0.5},), settings={"seed": 3}, config_hash="c", face_model_hash="f",
    seed=3, versions={"torch": "2"},
)  # fmt: skip


def small_network(seed: int = 0, width: int = 4) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 1))


def train(network: nn.Module, optimiser: torch.optim.Optimizer, steps: int) -> None:
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        optimiser.zero_grad()
        network(torch.randn(8, 3, generator=generator)).square().mean().backward()
        optimiser.step()


@pytest.fixture
def trained() -> tuple[nn.Sequential, torch.optim.Optimizer]:
    network = small_network()
    optimiser = build_optimiser(network, OptimiserSettings(learning_rate=1e-2))
    train(network, optimiser, 3)
    return network, optimiser


def test_training_goes_on_exactly_where_it_was(
    trained: tuple[nn.Sequential, torch.optim.Optimizer], tmp_path: Path
) -> None:
    network, optimiser = trained
    save_checkpoint(tmp_path, network, optimiser, STATE)
    again = small_network(seed=1)
    optimiser_again = build_optimiser(again, OptimiserSettings(learning_rate=1e-2))
    assert load_checkpoint(tmp_path, again, optimiser_again) == STATE
    train(network, optimiser, 3)
    train(again, optimiser_again, 3)
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0, msg=name)


def test_nothing_in_a_checkpoint_is_pickled(
    trained: tuple[nn.Sequential, torch.optim.Optimizer], tmp_path: Path
) -> None:
    save_checkpoint(tmp_path, *trained, STATE)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".json"] + [".safetensors"] * 2


def test_a_checkpoint_before_the_first_step_can_be_loaded(tmp_path: Path) -> None:
    network = small_network()
    save_checkpoint(tmp_path, network, build_optimiser(network, OptimiserSettings()), STATE)
    again = small_network(seed=1)
    load_checkpoint(tmp_path, again, build_optimiser(again, OptimiserSettings()))
    assert torch.equal(again[0].weight, network[0].weight)


@pytest.mark.parametrize("name", ["weights.safetensors", "optimiser.safetensors", "state.json"])
def test_a_changed_byte_is_found(
    trained: tuple[nn.Sequential, torch.optim.Optimizer], tmp_path: Path, name: str
) -> None:
    save_checkpoint(tmp_path, *trained, STATE)
    content = bytearray((tmp_path / name).read_bytes())
    content[-2] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name}: damaged: expected sha256 \w+, got"):
        load_checkpoint(tmp_path, *trained)


def test_missing_files_are_named(
    trained: tuple[nn.Sequential, torch.optim.Optimizer], tmp_path: Path
) -> None:
    save_checkpoint(tmp_path, *trained, STATE)
    (tmp_path / "optimiser.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"optimiser\.safetensors: listed in manifest\.json but miss"):
        check_files(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"unfinished checkpoint, it has no manifest\.json"):
        check_files(tmp_path)


def test_a_checkpoint_of_another_network_is_refused(
    trained: tuple[nn.Sequential, torch.optim.Optimizer], tmp_path: Path
) -> None:
    save_checkpoint(tmp_path, *trained, STATE)
    wider = small_network(width=5)
    with pytest.raises(WeightsError, match=r"expected shape \(5,\), got \(4,\)"):
        load_checkpoint(tmp_path, wider, build_optimiser(wider, OptimiserSettings()))


def test_another_format_is_refused(
    trained: tuple[nn.Sequential, torch.optim.Optimizer], tmp_path: Path
) -> None:
    save_checkpoint(tmp_path, *trained, STATE)
    content = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps({**content, "format": 99}))
    with pytest.raises(CheckpointError, match="expected checkpoint format 1, got 99"):
        read_state(tmp_path)


def test_names_sort_by_time() -> None:
    states = [STATE, dataclasses.replace(STATE, samples_in_epoch=160)]
    states.append(dataclasses.replace(STATE, epoch=3, samples_in_epoch=0))
    states.append(dataclasses.replace(STATE, epoch=10, samples_in_epoch=0))
    names = [state.name for state in states]
    assert names == sorted(names)


def test_validation_belongs_to_the_end_of_an_epoch() -> None:
    assert STATE.validation == {}
    assert dataclasses.replace(STATE, samples_in_epoch=0).validation == {"epoch": 1.0, "val_loss": 0.5}


def test_versions_name_what_results_depend_on() -> None:
    assert library_versions().keys() >= {"python", "torch", "numpy", "numba"}
