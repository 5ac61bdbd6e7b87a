"""The DF-MVR authors' released weights (.pth) as a network of ours: the same function under our names.

The authors' network is ours with `RELEASED`, and two parts of it never reach an output: the decoder's last
double convolution `conv9` and the head for 106 points `pts_net`. They are dropped, and so is the parser
(`mask_model`). Everything else is carried over, one tensor to one tensor, but for the heads: the authors have
1 x 1 convolutions on the averaged feature, one a group and view, ours are linear layers with units.

What their numbers mean, read from their code, and how the heads are turned so that ours mean the same:
    identity, expression, albedo  coefficients of the bases in BFM_model_front.mat; kept
    rotation     (rx, ry, rz) in radians, R = Rz Ry Rx on column vectors; kept
    translation  units of 100 mm in view-aligned model axes, added before a camera that stands one unit from
                 the origin (PyTorch3D's default); ours stands at SUBJECT_DISTANCE, so z shifts by 900 mm
    light        [3, 9], colour before band, + 0.8 on each first band; their bands have other factors and
                 signs than ours; rescaled, so that each normal is lit as by them

What the heads cannot carry: the authors light a colour of 0-255 as it is, ours is a linear albedo that is
encoded as sRGB after shading, so that renders look brighter or darker than theirs; and they light every view
in the right view's rotation. Assumed, as their code does not say it: their left view is our `left`, and their
parser's labels 0-9 are our regions.
"""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfmvr.geometry.camera import SUBJECT_DISTANCE
from dfmvr.lighting import AMBIENT, SH_BANDS
from dfmvr.networks.face_network import FaceNetwork, build_network
from dfmvr.networks.heads import (
    EXPRESSION_UNIT,
    LIGHT_UNIT,
    N_ALBEDO,
    N_EXPRESSION,
    N_IDENTITY,
    ROTATION_UNIT,
    TRANSLATION_UNIT,
)
from dfmvr.networks.settings import NetworkSettings
from dfmvr.networks.weights import ModelCard, WeightsError, save_model
from dfmvr.types import VIEW_NAMES

RELEASED = NetworkSettings(mask_input="scalar", shared_light=True, bounded_kernels=False)
"""The authors' network."""
IMAGE_SIZE = 224
"""Height and width in pixels of the authors' pictures."""
LICENCE = (
    "none given: the authors of DF-MVR (github weiguangzhao/DF_MVR) released these weights without a "
    "licence; their coefficients belong to the Basel Face Model, which has one of its own"
)

_DROPPED = re.compile(r"mask_model\.|uuunet\.conv9\.|rednet_fc\.rednet\.pts_net\.")
_WRAPPERS = ("model", "state_dict")
_MODULE = "module."

_VIEWS = ("lt", "ft", "rt")
_HEADS = "rednet_fc.conv2_"
_POSE = {"rotate": 3, "offset_xy": 2, "offset_z": 1}
_STAGE_STARTS = (0, 3, 7, 13)
"""Number of the first bottleneck of each stage."""
_GATE = {"gate": "W_g", "skip": "W_x", "score": "psi"}
_STEM = {
    "0": "0.conv",
    "1": "0.bn",
    "3.kernels.1": "1.conv1.conv",
    "3.kernels.2": "1.conv1.bn",
    "3.kernels.4": "1.conv2.conv",
    "4": "2",
    "6": "4.conv",
    "7": "4.bn",
}
_BOTTLENECK = {
    "body.0": "conv1",
    "body.1": "bn1",
    "body.3.kernels.1": "conv2.conv1.conv",
    "body.3.kernels.2": "conv2.conv1.bn",
    "body.3.kernels.4": "conv2.conv2.conv",
    "body.4": "bn2",
    "body.6": "conv3",
    "norm": "bn3",
    "shortcut.0": "downsample.0",
    "shortcut.1": "downsample.1",
}
"""Our layers and theirs; what lies between them holds no tensors."""

_MM = 100.0
"""mm for one of the authors' units of length."""
_CAMERA = 1.0
"""Distance of the authors' camera from the origin in their unit."""
_AMBIENT = 0.8
"""What they add to the first band of a light."""
_BAND_SCALES = (1.0, *(math.sqrt(3.0),) * 3, *(math.sqrt(8.0),) * 5)
_BAND_SIGNS = (1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0)
_LIGHT_FACTORS = tuple(
    sign * scale * math.sqrt(math.pi) / 2 for sign, scale in zip(_BAND_SIGNS, _BAND_SCALES, strict=True)
)
"""Our coefficient of each band's light for one of theirs: the ratio of the two bases (dfmvr/lighting.py)."""


def import_released(path: str | Path, directory: str | Path, face_model_hash: str) -> ModelCard:
    """Write the authors' checkpoint as a model folder.

    Args:
        path: the .pth.
        directory: the folder, made where missing.
        face_model_hash: hash of the Basel Face Model that the coefficients belong to.

    Returns:
        The card as written.

    Raises:
        WeightsError: see `read_released`.
    """
    card = ModelCard(
        network=RELEASED,
        image_size=IMAGE_SIZE,
        view_names=VIEW_NAMES,
        face_model_hash=face_model_hash,
        face_model_level=1,
        run_id="df-mvr-released",
        step=0,
        config_hash="",
        licence=LICENCE,
    )
    return save_model(directory, read_released(path), card)


def read_released(path: str | Path) -> FaceNetwork:
    """Build the authors' network from their checkpoint.

    Args:
        path: the .pth: a state dict, bare or under the name `model` or `state_dict`, with or without the
            prefix `module.`.

    Returns:
        The network of `RELEASED`, in eval mode.

    Raises:
        WeightsError: the file is missing, holds anything but tensors, or not exactly the authors' tensors.
    """
    tensors = read_tensors(path)
    network = build_network(RELEASED)
    assert isinstance(network, FaceNetwork)
    try:
        converted = convert(tensors, network.state_dict())
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    network.load_state_dict(converted, strict=True)
    return network.eval()


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read a PyTorch checkpoint that holds nothing but tensors; no code of its is run.

    Returns:
        The tensors by name, without wrapper and prefix.

    Raises:
        WeightsError: the file is missing, no checkpoint, or holds anything else.
    """
    if not Path(path).is_file():
        raise WeightsError(f"{path}: no such checkpoint")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files and refused pickles raise many kinds
        reason = str(error).strip().partition("\n")[0]
        raise WeightsError(f"{path}: expected a PyTorch checkpoint of tensors only, got: {reason}") from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path}: expected a state dict, got {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(f"{path}: {name}: expected a tensor, got {type(value).__name__}")
    return {name.removeprefix(_MODULE): value for name, value in content.items()}


def convert(tensors: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn the authors' state dict into one of ours.

    Args:
        tensors: theirs, by name.
        ours: the state dict of a network with `RELEASED`, or narrower; shapes are checked against it.

    Returns:
        Tensors for every name of `ours`.

    Raises:
        WeightsError: a tensor is missing, unknown, or of another shape.
    """
    names = {our: released_name(our) for our in ours if not our.startswith("heads.")}
    expected = {name: tuple(ours[our].shape) for our, name in names.items()}
    features = ours["heads.identity.weight"].shape[1]
    for head, rows in _head_rows().items():
        expected[f"{_HEADS}{head}.weight"] = (rows, features, 1, 1)
        expected[f"{_HEADS}{head}.bias"] = (rows,)
    for name in tensors:
        if name not in expected and not is_dropped(name):
            raise WeightsError(f"{name}: unknown; expected only tensors of the released DF-MVR network")
    for name, shape in expected.items():
        if name not in tensors:
            raise WeightsError(f"{name}: missing; expected a tensor of shape {shape}")
        if tuple(tensors[name].shape) != shape:
            raise WeightsError(f"{name}: expected shape {shape}, got {tuple(tensors[name].shape)}")
    return {our: tensors[name] for our, name in names.items()} | _heads(tensors)


def is_dropped(name: str) -> bool:
    """Tell whether a tensor of theirs reaches no output of the network: the module's docstring says which."""
    return _DROPPED.match(name) is not None


def released_name(name: str) -> str:
    """Return the authors' name of a tensor of ours outside the heads.

    Raises:
        ValueError: they have no such tensor.
    """
    module, _, tensor = name.rpartition(".")
    part, _, rest = module.partition(".")
    match part:
        case "fusion":
            return f"uuunet.{_unet_module(rest)}.{tensor}"
        case "regressor":
            return f"rednet_fc.rednet.{_rednet_module(rest)}.{tensor}"
    raise ValueError(f"{name}: the released network has no such tensor")


def _unet_module(module: str) -> str:
    """`conv1_0` is view 0's finest level; `up6` to `up9` lead from the coarsest level to the finest."""
    match module.split("."):
        case ["encoders", view, "levels", level, layer]:
            return f"conv{int(level) + 1}_{view}.conv.{layer}"
        case ["stages", stage, "up"]:
            return f"up{int(stage) + 6}"
        case ["stages", stage, "fuse", layer]:
            return f"conv{int(stage) + 6}.conv.{layer}"
        case ["stages", stage, "gates", view, part, layer]:
            return f"att{4 - int(stage)}_{view}.{_GATE[part]}.{layer}"
    raise ValueError(f"fusion.{module}: the released network has no such module")


def _rednet_module(module: str) -> str:
    """Their bottlenecks count from zero in each stage, ours through all of them."""
    part, _, rest = module.partition(".")
    if part == "stem":
        return f"stem.{_STEM[rest]}"
    index, _, layer = rest.partition(".")
    stage = bisect.bisect_right(_STAGE_STARTS, int(index))
    return f"layer{stage}.{int(index) - _STAGE_STARTS[stage - 1]}.{_BOTTLENECK[layer]}"


def _head_rows() -> dict[str, int]:
    """Return the number of outputs of each head of theirs."""
    shared = {"id": N_IDENTITY, "exp": N_EXPRESSION, "color": N_ALBEDO, "gamma": 3 * SH_BANDS}
    return shared | {f"{part}_{view}": rows for view in _VIEWS for part, rows in _POSE.items()}


def _heads(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn their heads into ours: what the module's docstring says, with our units divided out."""
    heads = {
        "identity": _affine(tensors, "id"),
        "expression": _affine(tensors, "exp") / EXPRESSION_UNIT,
        "albedo": _affine(tensors, "color"),
        "light": _light(_affine(tensors, "gamma")),
        "pose": torch.cat([_pose(tensors, view) for view in _VIEWS]),
    }
    dtype = tensors[f"{_HEADS}id.weight"].dtype
    ours: dict[str, Tensor] = {}
    for name, affine in heads.items():
        ours[f"heads.{name}.weight"] = affine[:, :-1].to(dtype)
        ours[f"heads.{name}.bias"] = affine[:, -1].to(dtype)
    return ours


def _affine(tensors: Mapping[str, Tensor], *heads: str) -> Tensor:
    """Return the heads one below the other as float64 [rows, features + 1], the biases as the last column."""
    parts = [
        torch.cat(
            [tensors[f"{_HEADS}{head}.weight"].flatten(1), tensors[f"{_HEADS}{head}.bias"].unsqueeze(1)], 1
        )
        for head in heads
    ]
    return torch.cat(parts).double()


def _light(affine: Tensor) -> Tensor:
    """Turn [colour x band, features + 1] of theirs into [band x colour, features + 1] of ours."""
    light = affine.unflatten(0, (3, SH_BANDS)).transpose(0, 1).clone()
    light[0, :, -1] += _AMBIENT
    light *= light.new_tensor(_LIGHT_FACTORS)[:, None, None]
    light[0, :, -1] -= AMBIENT
    return light.flatten(0, 1) / LIGHT_UNIT


def _pose(tensors: Mapping[str, Tensor], view: str) -> Tensor:
    """Return one view's rows of our pose head, [6, features + 1]: angles, then translation."""
    rotation = _affine(tensors, f"rotate_{view}")
    translation = _MM * _affine(tensors, f"offset_xy_{view}", f"offset_z_{view}")
    translation[2, -1] += SUBJECT_DISTANCE - _MM * _CAMERA
    unit = translation.new_tensor(TRANSLATION_UNIT).unsqueeze(1)
    return torch.cat([rotation / ROTATION_UNIT, translation / unit])
