"""The released weights: every tensor has its place, and the network is the same function as the authors'."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dfmvr.cli import main
from dfmvr.geometry.camera import default_intrinsics, project, to_camera
from dfmvr.lighting import shade
from dfmvr.morphable import bfm
from dfmvr.morphable.io import DEFAULT_MODEL
from dfmvr.morphable.model import MorphableModel
from dfmvr.networks import NetworkSettings, build_network, released
from dfmvr.networks.released import RELEASED, convert, is_dropped, read_tensors, released_name
from dfmvr.networks.weights import WeightsError, load_model

LAYOUT = Path(__file__).parents[3] / "shared/data/df_mvr_state_dict.json"
VIEWS = ("lt", "ft", "rt")
BASE = 16
NARROW = dataclasses.replace(RELEASED, width=BASE / 64)


class Theirs(nn.Module):
    """The authors' network, written from its description; names of modules are those of the checkpoint."""

    def __init__(self, base: int) -> None:
        super().__init__()
        self.uuunet = TheirUnet(base)
        self.rednet_fc = TheirHeads(base)

    def forward(self, views: Tensor) -> dict[str, Tensor]:
        return self.rednet_fc(self.uuunet(views))


def double_conv(inner: int, outer: int) -> nn.Module:
    module = nn.Module()
    layers = [nn.Conv2d(inner, outer, 3, padding=1), nn.BatchNorm2d(outer), nn.ReLU()]
    layers += [nn.Conv2d(outer, outer, 3, padding=1), nn.BatchNorm2d(outer), nn.ReLU()]
    module.conv = nn.Sequential(*layers)
    return module


class TheirUnet(nn.Module):
    def __init__(self, base: int) -> None:
        super().__init__()
        widths = [4] + [base * 2**level for level in range(5)]
        for view in range(3):
            for level in range(1, 6):
                self.add_module(f"conv{level}_{view}", double_conv(widths[level - 1], widths[level]))
            for level in range(1, 5):
                gate = nn.Module()
                width, half = widths[level], widths[level] // 2
                gate.W_g = nn.Sequential(nn.Conv2d(width, half, 1), nn.BatchNorm2d(half))
                gate.W_x = nn.Sequential(nn.Conv2d(width, half, 1), nn.BatchNorm2d(half))
                gate.psi = nn.Sequential(nn.Conv2d(half, 1, 1), nn.BatchNorm2d(1))
                self.add_module(f"att{level}_{view}", gate)
        for level in range(4, 0, -1):
            inner = 3 * widths[5] if level == 4 else widths[level + 1]
            self.add_module(f"up{10 - level}", nn.ConvTranspose2d(inner, widths[level], 2, stride=2))
            self.add_module(f"conv{10 - level}", double_conv(4 * widths[level], widths[level]))

    def forward(self, views: Tensor) -> Tensor:
        skips = {}
        for view in range(3):
            x = views[:, view]
            for level in range(1, 6):
                x = self.get_submodule(f"conv{level}_{view}").conv(x)
                skips[level, view] = x
                x = functional.max_pool2d(x, 2)
        x = torch.cat([skips[5, view] for view in range(3)], 1)
        for level in range(4, 0, -1):
            x = self.get_submodule(f"up{10 - level}")(x)
            parts = [x]
            for view in range(3):
                gate, skip = self.get_submodule(f"att{level}_{view}"), skips[level, view]
                parts.append(skip * torch.sigmoid(gate.psi(torch.relu(gate.W_g(x) + gate.W_x(skip)))))
            x = torch.cat(parts, 1)
            if level > 1:
                x = self.get_submodule(f"conv{10 - level}").conv(x)
        return x


class TheirInvolution(nn.Module):
    def __init__(self, channels: int, size: int, stride: int) -> None:
        super().__init__()
        self.size, self.stride, self.groups = size, stride, max(channels // 16, 1)
        self.conv1, self.conv2 = nn.Module(), nn.Module()
        self.conv1.conv = nn.Conv2d(channels, channels // 4, 1, bias=False)
        self.conv1.bn = nn.BatchNorm2d(channels // 4)
        self.conv2.conv = nn.Conv2d(channels // 4, size**2 * self.groups, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = functional.avg_pool2d(x, self.stride) if self.stride > 1 else x
        kernels = self.conv2.conv(torch.relu(self.conv1.bn(self.conv1.conv(pooled))))
        b, _, h, w = kernels.shape
        kernels = kernels.view(b, self.groups, 1, self.size**2, h, w)
        patches = functional.unfold(x, self.size, padding=self.size // 2, stride=self.stride)
        patches = patches.view(b, self.groups, x.shape[1] // self.groups, self.size**2, h, w)
        return (kernels * patches).sum(3).flatten(1, 2)


class TheirBottleneck(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int, shortcut: bool) -> None:
        super().__init__()
        middle = outer // 4
        self.conv1, self.bn1 = nn.Conv2d(inner, middle, 1, bias=False), nn.BatchNorm2d(middle)
        self.conv2, self.bn2 = TheirInvolution(middle, 7, stride), nn.BatchNorm2d(middle)
        self.conv3, self.bn3 = nn.Conv2d(middle, outer, 1, bias=False), nn.BatchNorm2d(outer)
        if shortcut:
            self.downsample = nn.Sequential(
                nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


def conv_module(inner: int, outer: int, stride: int) -> nn.Module:
    module = nn.Module()
    module.conv = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
    module.bn = nn.BatchNorm2d(outer)
    return module


class TheirHeads(nn.Module):
    def __init__(self, base: int) -> None:
        super().__init__()
        net = self.rednet = nn.Module()
        net.stem = nn.ModuleList(
            (
                conv_module(4 * base, base // 2, 2),
                TheirInvolution(base // 2, 3, 1),
                nn.BatchNorm2d(base // 2),
                nn.ReLU(),
                conv_module(base // 2, base, 1),
            )
        )
        inner = base
        for stage, count in enumerate((3, 4, 6, 3)):
            outer, stride = 4 * base * 2**stage, 2 if stage else 1
            blocks = [TheirBottleneck(inner, outer, stride, shortcut=True)]
            blocks += [TheirBottleneck(outer, outer, 1, shortcut=False) for _ in range(count - 1)]
            net.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            inner = outer
        net.pts_net = nn.Sequential(nn.Linear(inner, 8), nn.PReLU())
        rows = {"id": 80, "exp": 64, "color": 80, "gamma": 27}
        for view in VIEWS:
            rows |= {f"rotate_{view}": 3, f"offset_xy_{view}": 2, f"offset_z_{view}": 1}
        self.names = tuple(rows)
        for name, count in rows.items():
            self.add_module(f"conv2_{name}", nn.Conv2d(inner, count, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        net = self.rednet
        x = torch.relu(net.stem[0].bn(net.stem[0].conv(x)))
        x = torch.relu(net.stem[2](net.stem[1](x)))
        x = torch.relu(net.stem[4].bn(net.stem[4].conv(x)))
        x = functional.max_pool2d(x, 3, 2, 1)
        for stage in range(1, 5):
            x = net.get_submodule(f"layer{stage}")(x)
        x = functional.adaptive_avg_pool2d(x, 1)
        return {name: self.get_submodule(f"conv2_{name}")(x).flatten(1) for name in self.names}


def draw(batch: int) -> tuple[Tensor, Tensor]:
    images = torch.rand(batch, 3, 3, 64, 64, dtype=torch.float64)
    return images, torch.randint(0, 10, (batch, 3, 64, 64))


def their_input(images: Tensor, masks: Tensor) -> Tensor:
    return torch.cat([(images - 0.5) / 0.5, masks.unsqueeze(2).double()], 2)


@pytest.fixture(scope="module")
def theirs() -> Theirs:
    """Random weights; statistics that fit them, so that nothing overflows, and are then disturbed."""
    torch.manual_seed(3)
    network = Theirs(BASE).double()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            if name.endswith("conv2.conv1.bn"):
                module.weight.data *= 3.0  # beyond six
            if name.endswith("bn3"):
                module.weight.data *= 0.1  # a block is quadratic in its input
    with torch.no_grad():
        network.train()(their_input(*draw(8)))
        for norm in norms:
            norm.running_mean += 0.1 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean)
            norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.8, 1.25)
        for view in VIEWS:
            network.get_submodule(f"rednet_fc.conv2_offset_z_{view}").bias.sub_(9.0)  # in front of the camera
    return network.eval()


def compare(theirs: Theirs, changes: dict[str, bool]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what both networks say of the same pictures: raw coefficients, pose matrices, mm and light."""
    ours = build_network(dataclasses.replace(NARROW, **changes)).double().eval()
    ours.load_state_dict(convert(theirs.state_dict(), ours.state_dict()))
    torch.manual_seed(4)
    images, masks = draw(2)
    with torch.no_grad():
        said = theirs(their_input(images, masks))
        got = ours(images, masks)
    expected = {"identity": said["id"], "expression": said["exp"], "albedo": said["color"]}
    angles = torch.stack([said[f"rotate_{view}"] for view in VIEWS], 1)
    offsets = [torch.cat([said[f"offset_xy_{view}"], said[f"offset_z_{view}"]], 1) for view in VIEWS]
    expected |= {"angles": angles, "offsets": torch.stack(offsets, 1), "gamma": said["gamma"]}
    return expected, {field.name: getattr(got, field.name) for field in dataclasses.fields(got)}


def turn(axis: int, angle: Tensor) -> Tensor:
    """Rotation about one axis, right-handed, [..., 3, 3]."""
    generator = torch.zeros(3, 3, dtype=angle.dtype)
    a, b = (axis + 1) % 3, (axis + 2) % 3
    generator[b, a], generator[a, b] = 1.0, -1.0
    return torch.linalg.matrix_exp(angle[..., None, None] * generator)


def their_shading(normals: Tensor, gamma: Tensor) -> Tensor:
    """Colour [B, N, 3] of white skin with unit normals [N, 3] in their code's light [B, 27]."""
    x, y, z = normals.unbind(-1)
    a0, a1, a2 = math.pi, 2 * math.pi / math.sqrt(3), 2 * math.pi / math.sqrt(8)
    c0, c1, c2 = (4 * math.pi) ** -0.5, (3 / (4 * math.pi)) ** 0.5, 3 * (5 / (12 * math.pi)) ** 0.5
    first = [a0 * c0 * torch.ones_like(x), -a1 * c1 * y, a1 * c1 * z, -a1 * c1 * x]
    second = [x * y, -y * z, (3 * z * z - 1) / (2 * math.sqrt(3)), -x * z, (x * x - y * y) / 2]
    basis = torch.stack(first + [a2 * c2 * term for term in second], -1)
    light = gamma.view(-1, 3, 9).clone()
    light[..., 0] += 0.8
    return torch.einsum("nk,bck->bnc", basis, light)


def test_our_network_says_what_theirs_says(theirs: Theirs):
    expected, got = compare(theirs, {})
    assert expected["identity"].std(0).mean() > 1e-3  # the pictures matter
    for name in ("identity", "expression", "albedo"):
        torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-5)
    rx, ry, rz = expected["angles"].unbind(-1)
    rotation = turn(2, rz) @ turn(1, ry) @ turn(0, rx)
    torch.testing.assert_close(got["rotation"], rotation, rtol=1e-5, atol=1e-5)


def test_points_fall_on_the_same_pixels(theirs: Theirs):
    expected, got = compare(theirs, {})
    torch.manual_seed(5)
    points = torch.randn(7, 3, dtype=torch.float64)  # their units of 100 mm
    # Their camera looks from (0, 0, 1) down to the origin; x right, y up; 1015 px.
    posed = points @ got["rotation"].mT + expected["offsets"].unsqueeze(2)
    depth = 1.0 - posed[..., 2:]
    pixels = 112.0 + 1015.0 * posed[..., :2] * torch.tensor([1.0, -1.0], dtype=torch.float64) / depth
    camera = to_camera(100.0 * points, got["rotation"], got["translation"])
    ours = project(camera, default_intrinsics(224).double())
    torch.testing.assert_close(ours, pixels, rtol=1e-5, atol=1e-4)


def test_normals_are_lit_as_by_them(theirs: Theirs):
    expected, got = compare(theirs, {})
    torch.manual_seed(6)
    normals = functional.normalize(torch.randn(50, 3, dtype=torch.float64), dim=-1)
    white = torch.ones(50, 3, dtype=torch.float64)
    for view in range(3):
        ours = shade(white, normals, got["light"][:, view])
        torch.testing.assert_close(ours, their_shading(normals, expected["gamma"]), rtol=1e-5, atol=1e-5)


def test_kernels_cut_at_six_are_another_network(theirs: Theirs):
    expected, got = compare(theirs, {"bounded_kernels": True})
    assert (got["identity"] - expected["identity"]).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"network\.bounded_kernels: expected true for mulen_unet_resnet"):
        NetworkSettings(name="mulen_unet_resnet", bounded_kernels=False)


@pytest.fixture(scope="module")
def layout() -> dict[str, list[int]]:
    if not LAYOUT.is_file():
        pytest.skip(
            f"{LAYOUT} is absent: the released checkpoint's names and shapes are not in this repository"
        )
    return json.loads(LAYOUT.read_text())


def test_every_released_tensor_has_one_place_or_is_dropped(layout: dict[str, list[int]]):
    with torch.device("meta"):
        ours = build_network(RELEASED).state_dict()
    pairs = {name: released_name(name) for name in ours if not name.startswith("heads.")}
    heads = {name for name in layout if name.startswith("rednet_fc.conv2_")}
    dropped = {name for name in layout if is_dropped(name)}
    assert len(layout) == 1009
    assert len(set(pairs.values())) == len(pairs)
    assert {*pairs.values(), *heads, *dropped} == set(layout)
    assert len(pairs) + len(heads) + len(dropped) == 1009
    assert {name.rsplit(".", 3)[0] for name in dropped} == {"uuunet.conv9", "rednet_fc.rednet"}
    assert len(heads) == 2 * (4 + 3 * 3)
    assert [list(ours[name].shape) for name in pairs] == [layout[name] for name in pairs.values()]
    numbers = sum(math.prod(layout[name]) for name in heads)
    assert numbers == sum(tensor.numel() for name, tensor in ours.items() if name.startswith("heads."))


def test_the_real_layout_is_converted(layout: dict[str, list[int]]):
    with torch.device("meta"):
        ours = build_network(RELEASED).state_dict()
    tensors = {name: torch.empty(shape, device="meta") for name, shape in layout.items()}
    tensors["mask_model.cp.conv.weight"] = torch.zeros(3)
    converted = convert({**tensors, **real_heads(layout)}, ours)
    assert {n: t.shape for n, t in converted.items()} == {n: t.shape for n, t in ours.items()}


def real_heads(layout: dict[str, list[int]]) -> dict[str, Tensor]:
    """Zeros: the heads are the one part that is computed with."""
    return {n: torch.zeros(shape) for n, shape in layout.items() if n.startswith("rednet_fc.conv2_")}


def test_an_unknown_tensor_is_refused(theirs: Theirs):
    tensors = {**theirs.state_dict(), "uuunet.conv10.conv.0.weight": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"uuunet\.conv10\.conv\.0\.weight: unknown"):
        convert(tensors, build_network(NARROW).state_dict())


@pytest.mark.parametrize("name", ["uuunet.att2_1.psi.0.bias", "rednet_fc.conv2_offset_z_lt.bias"])
def test_a_missing_tensor_and_a_wrong_shape_are_refused(theirs: Theirs, name: str):
    tensors, ours = theirs.state_dict(), build_network(NARROW).state_dict()
    with pytest.raises(WeightsError, match=rf"{name}: expected shape \(1,\), got \(2,\)"):
        convert({**tensors, name: torch.zeros(2)}, ours)
    del tensors[name]
    with pytest.raises(WeightsError, match=rf"{name}: missing; expected a tensor of shape \(1,\)"):
        convert(tensors, ours)


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrapper_and_prefix_are_taken_off(tmp_path: Path, wrapper: str | None, prefix: str):
    content = {f"{prefix}uuunet.up6.bias": torch.ones(2)}
    path = tmp_path / "released.pth"
    torch.save({wrapper: content, "epoch": 3} if wrapper else content, path)
    tensors = read_tensors(path)
    assert list(tensors) == ["uuunet.up6.bias"]
    assert tensors["uuunet.up6.bias"].tolist() == [1.0, 1.0]


class Code:
    """What a pickle must not be able to do."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return Path.touch, (self.witness,)


def test_code_and_other_files_are_refused(tmp_path: Path):
    path, witness = tmp_path / "released.pth", tmp_path / "witness"
    torch.save({"uuunet.up6.bias": Code(witness)}, path)
    with pytest.raises(WeightsError, match=r"released\.pth: expected a PyTorch checkpoint of tensors only"):
        read_tensors(path)
    assert not witness.exists()
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(WeightsError, match=r"released\.pth: expected a PyTorch checkpoint of tensors only"):
        read_tensors(path)
    torch.save({"uuunet.up6.bias": 3}, path)
    with pytest.raises(WeightsError, match=r"uuunet\.up6\.bias: expected a tensor, got int"):
        read_tensors(path)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(WeightsError, match="expected a state dict, got list"):
        read_tensors(path)
    with pytest.raises(WeightsError, match=r"absent\.pth: no such checkpoint"):
        read_tensors(tmp_path / "absent.pth")


def test_the_command_writes_a_model_folder(
    theirs: Theirs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(released, "RELEASED", NARROW)
    source, out = tmp_path / "released.pth", tmp_path / "model"
    tensors = {name: tensor.float() for name, tensor in theirs.state_dict().items()}
    torch.save(tensors, source)
    shipped = MorphableModel.load()
    arguments = ["import-checkpoint", str(source), "--face-model", str(DEFAULT_MODEL), "--out", str(out)]
    assert main(arguments) == 2
    assert "expected the Basel Face Model" in capsys.readouterr().err
    assert not out.exists()
    monkeypatch.setattr(bfm, "LICENCE", shipped.licence)
    assert main(arguments) == 0
    network, card = load_model(out)
    assert card.face_model_hash == shipped.hash
    assert card.image_size == 224
    assert "without a licence" in card.licence
    assert card.weights_hash in capsys.readouterr().out
    bias = network.heads.identity.bias
    torch.testing.assert_close(bias, tensors["rednet_fc.conv2_id.bias"])
    del tensors["uuunet.up6.bias"]
    torch.save(tensors, source)
    assert main(arguments) == 2
    assert "released.pth: uuunet.up6.bias: missing" in capsys.readouterr().err
