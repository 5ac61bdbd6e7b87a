import pytest
import torch
from torch import nn

from dfmvr.config import load_settings
from dfmvr.networks import PRESETS, NetworkSettings, build_network
from dfmvr.networks.face_network import PatchEmbedding
from dfmvr.networks.heads import FaceHeads
from dfmvr.networks.inputs import network_inputs
from dfmvr.networks.landmark_maps import PlaceReader
from dfmvr.networks.mulen_unet import AttentionGate, MulEnUnet
from dfmvr.networks.rednet import RedNet
from dfmvr.networks.resnet import ResNet
from dfmvr.networks.settings import NETWORKS
from dfmvr.training.dry_run import count_macs
from dfmvr.types import FaceParams

SMALLEST = 1 / 16


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def draw(n_views: int, size: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(batch, n_views, 3, size, size, generator=generator)
    masks = torch.randint(0, 10, (batch, n_views, size, size), generator=generator)
    return images, masks


def small(**changes) -> nn.Module:
    torch.manual_seed(0)
    flags = changes.get("name") in ("resnet_per_view", "set_rednet")
    return build_network(NetworkSettings(**{"width": SMALLEST, "view_flags": flags, **changes}))


def values(params: FaceParams) -> dict[str, torch.Tensor]:
    fields = {name: getattr(params, name) for name in params.__dataclass_fields__}
    return {name: value for name, value in fields.items() if value is not None}


def test_paper_preset_has_the_papers_size():
    with torch.device("meta"):
        fusion = MulEnUnet(3, 4, 64)
        regressor = RedNet(fusion.out_channels, 64)
        heads = FaceHeads(regressor.out_features, 3)
    assert fusion.out_channels == 256
    assert count(fusion) == 80_078_532  # paper/numbers: the released code without its unused conv9
    # RedNet-50 of Li et al. has 15.54 M with 3 input channels and its 1000 classes (2,049,000). Here the stem
    # reads 256 channels (+72,864) and the heads stand in the place of the classes.
    assert count(regressor) == 15_540_806 - 2_049_000 + 253 * 32 * 9
    assert count(heads) == (80 + 64 + 80 + 3 * 27 + 3 * 6) * (2048 + 1)
    with torch.device("meta"):
        network = build_network(PRESETS["paper"])
    assert count(network) == count(fusion) + count(regressor) + count(heads) == 94_305_029


@pytest.mark.parametrize(("mask_input", "channels"), [("one_hot", 13), ("scalar", 4), ("none", 3)])
def test_mask_input_decides_the_channels(mask_input, channels):
    network = small(mask_input=mask_input)
    assert network.fusion.in_channels == channels
    images, masks = draw(3, 32)
    inputs = network_inputs(images, masks, mask_input)
    assert inputs.shape == (2, 3, channels, 32, 32)
    torch.testing.assert_close(inputs[:, :, :3], images * 2 - 1)
    if mask_input == "scalar":
        assert torch.equal(inputs[:, :, 3], masks.float())
    if mask_input == "one_hot":
        assert torch.equal(inputs[:, :, 3:].argmax(2), masks)
        assert torch.equal(inputs[:, :, 3:].sum(2), torch.ones(2, 3, 32, 32))


@pytest.mark.parametrize("n_views", [1, 2, 3, 5])
def test_shapes_for_any_number_of_views(n_views):
    params = small(n_views=n_views)(*draw(n_views, 32))
    shapes = {name: tuple(value.shape) for name, value in values(params).items()}
    assert shapes == {
        "identity": (2, 80),
        "expression": (2, 64),
        "albedo": (2, 80),
        "light": (2, n_views, 9, 3),
        "rotation": (2, n_views, 3, 3),
        "translation": (2, n_views, 3),
    }


@pytest.mark.parametrize("size", [64, 96, 112, 224])
def test_sizes(size):
    network = small()
    images, masks = draw(3, size)
    with torch.no_grad():
        fused, _ = network.fusion(network_inputs(images, masks, "one_hot"))
        params = network.heads(network.regressor(fused))
    assert fused.shape == (2, 16, size, size)
    assert all(value.isfinite().all() for value in values(params).values())


def assert_mean_face(params: FaceParams) -> None:
    units = {"identity": 1.0, "expression": 0.25, "albedo": 1.0, "translation": 100.0}
    for name, unit in units.items():
        assert getattr(params, name).abs().max() < 0.1 * unit, name
    assert (params.rotation - torch.eye(3)).abs().max() < 0.03
    neutral = torch.zeros(9, 3)
    neutral[0] = 0.8
    assert (params.light - neutral).abs().max() < 0.03


@pytest.mark.parametrize("preset", ["eighth", "quarter"])
def test_first_prediction_is_the_mean_face(preset):
    torch.manual_seed(0)
    network = build_network(PRESETS[preset])
    with torch.no_grad():
        assert_mean_face(network(*draw(3, 64)))
        assert_mean_face(network.eval()(*draw(3, 64)))


def test_a_few_steps_leave_evaluation_finite():
    """A new network's batch-norm statistics are wrong; evaluation must survive them."""
    network = small()
    images, masks = draw(3, 32)
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(3):
        optimiser.zero_grad()
        (network(images, masks).identity - 1).square().mean().backward()
        optimiser.step()
    params = network.eval()(images, masks)
    assert all(value.isfinite().all() and value.abs().max() < 1e3 for value in values(params).values())


def test_gradients_reach_the_inputs_of_every_view_and_every_layer():
    network = small()
    # after a first step: the residual branches start closed
    for block in network.regressor.blocks:
        nn.init.ones_(block.norm.weight)
    images, masks = draw(3, 64)
    images.requires_grad_()
    params = network(images, masks)
    sum(value.square().sum() for value in values(params).values()).backward()
    assert (images.grad.flatten(2).abs().sum(2) > 0).all()
    lost = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert lost == []
    # a bias in front of a batch-norm has no effect in training; everything else must learn
    still = [
        name
        for name, parameter in network.named_parameters()
        if parameter.ndim == 4 and not parameter.grad.abs().sum() > 0
    ]
    assert still == []


def test_views_have_their_own_encoders():
    network = small().eval()
    images, masks = draw(3, 32)
    swapped = network(images[:, [1, 0, 2]], masks[:, [1, 0, 2]])
    assert not torch.allclose(network(images, masks).identity, swapped.identity)


def test_seed_decides_the_weights():
    first, second = small().state_dict(), small().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.manual_seed(1)
    other = build_network(NetworkSettings(width=SMALLEST)).state_dict()
    assert not torch.equal(first["heads.identity.weight"], other["heads.identity.weight"])


def test_state_is_contiguous_and_free_of_constants():
    state = small().state_dict()
    assert all(value.is_contiguous() for value in state.values())
    assert not any(name.startswith("heads.") and not name.endswith(("weight", "bias")) for name in state)


def test_attention_gate_only_scales():
    gate = AttentionGate(8)
    skip = torch.rand(2, 8, 6, 6) + 0.5
    ratio = gate(torch.randn(2, 8, 6, 6), skip) / skip
    assert ratio.amin() > 0
    assert ratio.amax() < 1
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))


def test_resnet_has_the_published_size():
    with torch.device("meta"):
        assert count(ResNet(3, 64)) == 25_557_032 - 2_049_000  # ResNet-50 without its 1000 classes


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_maps_views_to_a_face(name):
    network = small(name=name)
    for block in network.regressor.blocks:
        nn.init.ones_(block.norm.weight)
    images, masks = draw(3, 32)
    images.requires_grad_()
    params = network(images, masks)
    assert params.identity.shape == (2, 80)
    assert params.rotation.shape == (2, 3, 3, 3)
    sum(value.square().sum() for value in values(params).values()).backward()
    assert (images.grad.flatten(2).abs().sum(2) > 0).all()
    assert not [name for name, parameter in network.named_parameters() if parameter.grad is None]


def test_late_fusion_keeps_views_apart_until_the_end():
    for name in ("unet_rednet", "cnn_rednet"):
        network = small(name=name).eval()
        views = network_inputs(*draw(3, 32), "one_hot")
        changed = views.clone()
        changed[:, 1] += 1
        before, after = (network.fusion(v)[0].unflatten(1, (3, -1)) for v in (views, changed))
        assert torch.equal(before[:, [0, 2]], after[:, [0, 2]]), name
        assert not torch.allclose(before[:, 1], after[:, 1]), name


def test_encoders_and_light_can_be_shared():
    shared, own = small(shared_encoders=True, shared_light=True), small()
    encoder = count(own.fusion.encoders[0])
    assert count(own.fusion) - count(shared.fusion) == 2 * encoder
    images, masks = draw(3, 32)
    light = shared(images, masks).light
    assert light.shape == (2, 3, 9, 3)
    assert torch.equal(light[:, 0], light[:, 2])
    own_light = own(images, masks).light
    assert not torch.equal(own_light[:, 0], own_light[:, 2])
    assert count(own.fusion) > count(small(attention_gates=False).fusion)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "cnn_rednet", "landmark_maps": True}, r"network\.landmark_maps: expected false"),
        ({"name": "unet_rednet", "shared_encoders": True}, r"network\.shared_encoders, .*: expected false"),
        (
            {"name": "unet_rednet", "attention_gates": False},
            r"network\.attention_gates: .* and true for unet",
        ),
        ({"name": "vgg"}, r"network\.name: expected one of .* got 'vgg'"),
        ({"mask_input": "label"}, r"network\.mask_input: expected one of .* got 'label'"),
        ({"input_stride": 3}, r"network\.input_stride: expected one of \(1, 2, 4\), got 3"),
        (
            {"name": "resnet_per_view", "view_flags": True, "input_stride": 2},
            r"network\.input_stride: expected 1 for resnet_per_view, got 2",
        ),
        ({"n_views": 0}, r"network\.n_views: expected at least 1, got 0"),
        ({"width": 0.3}, r"network\.width: expected 64 x width = 4, 8 or a multiple of 16, got .* = 19.2"),
        ({"width": 0.0}, r"network\.width"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        NetworkSettings(**changes)


def test_wrong_inputs_are_refused():
    network = small()
    images, masks = draw(3, 32)
    with pytest.raises(ValueError, match=r"views: expected \[B, 3, 13, H, W\], got \(2, 2, 13, 32, 32\)"):
        network(images[:, :2], masks[:, :2])
    with pytest.raises(
        ValueError, match=r"images and masks: expected .* got \(2, 3, 3, 32, 32\) and \(2, 2, 32, 32\)"
    ):
        network(images, masks[:, :2])
    with pytest.raises(ValueError, match="multiples of 16 for both sides, got 40 x 40"):
        network(*draw(3, 40))


def test_a_patch_is_embedded_the_same_way_wherever_it_lies():
    embed = PatchEmbedding(3, 5, 2)
    views, _ = draw(3, 8)
    views[:, 1, :, 2:4, 6:8] = views[:, 0, :, 0:2, 0:2]
    patches = embed(views)
    assert patches.shape == (2, 3, 5, 4, 4)
    torch.testing.assert_close(patches[:, 1, :, 1, 3], patches[:, 0, :, 0, 0])
    torch.testing.assert_close(
        patches[0, 0, :, 0, 0], (embed.embed.weight * views[0, 0, :, :2, :2]).sum((1, 2, 3))
    )


@pytest.mark.parametrize("name", ["mulen_unet_rednet", "unet_rednet"])
def test_a_network_of_patches_draws_its_maps_at_the_same_size(name):
    shapes = {
        small(name=name, landmark_maps=True, input_stride=stride)(*draw(3, 64)).landmark_scores.shape
        for stride in (1, 2, 4)
    }
    assert shapes == {(2, 3, 68, 16, 16)}
    with pytest.raises(ValueError, match="image size: expected multiples of 4 for both sides, got 66 x 66"):
        small(input_stride=4)(*draw(3, 66))


def test_the_light_network_has_a_quarter_of_the_arithmetic():
    v6, light = (load_settings(f"configs/{name}.yaml").network for name in ("ablation/v6", "beyond/light"))
    for size in (64, 224):
        assert count_macs(light, size) <= count_macs(v6, size) / 4


@pytest.mark.parametrize("landmark_maps", [False, True])
def test_a_network_with_view_flags_does_not_look_at_missing_views(landmark_maps):
    network = small(view_flags=True, landmark_maps=landmark_maps).eval()
    images, masks = draw(3, 32)
    present = torch.tensor([[True, True, False], [False, True, True]])
    changed_images, changed_masks = images.clone(), masks.clone()
    changed_images[~present] = torch.rand(2, 3, 32, 32)
    changed_masks[~present] = 0
    one, other = (
        values(network(*inputs, present)) for inputs in ((images, masks), (changed_images, changed_masks))
    )
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
    everything = values(network(images, masks))
    assert not torch.allclose(one["identity"], everything["identity"])
    ones = torch.ones(2, 3, dtype=torch.bool)
    assert torch.equal(values(network(images, masks, ones))["identity"], everything["identity"])


def per_view(**changes) -> nn.Module:
    return small(name="resnet_per_view", mask_input="none", **changes).eval()


def test_the_baseline_averages_what_it_sees_in_each_view():
    network = per_view()
    nn.init.normal_(network.heads.identity.weight, std=0.1)
    images, masks = draw(3, 32)
    together = values(network(images, masks))
    alone = [values(network(images[:, v : v + 1], masks[:, v : v + 1])) for v in range(3)]
    for name in ("identity", "expression", "albedo"):
        mean = torch.stack([view[name] for view in alone]).mean(0)
        torch.testing.assert_close(together[name], mean, atol=1e-5, rtol=0)
    for name in ("light", "rotation", "translation"):
        torch.testing.assert_close(together[name], torch.cat([view[name] for view in alone], 1))
    only_left = network(images, masks, torch.tensor([[True, False, False]] * 2))
    torch.testing.assert_close(only_left.identity, alone[0]["identity"], atol=1e-5, rtol=0)


def test_a_sure_view_counts_more():
    network = per_view(aggregation="confidence")
    nn.init.normal_(network.heads.identity.weight, std=0.1)
    images, masks = draw(3, 32)
    features = network.regressor(network_inputs(images, masks, "none").flatten(0, 1))
    nn.init.normal_(network.confidence.weight, std=3.0)
    shares = network.confidence(features).view(2, 3).softmax(1)
    assert shares.std() > 0.05
    each = network.heads(features).identity.view(2, 3, -1)
    torch.testing.assert_close(network(images, masks).identity, (shares.unsqueeze(-1) * each).sum(1))


def test_missing_views_do_not_move_the_statistics_of_places():
    reader = PlaceReader(2, 8).train()
    places = torch.rand(4, 2, 68, 2)
    present = torch.tensor([[True, False]] * 4)
    reader(places, present)
    mean, variance = (statistic.unflatten(0, (2, -1)) for statistic in (reader.mean, reader.variance))
    assert (mean[1] == 0.5).all()
    assert torch.equal(variance[1], torch.full_like(variance[1], 0.01))
    torch.testing.assert_close(mean[0], 0.95 * 0.5 + 0.05 * places[:, 0].flatten(1).mean(0))
