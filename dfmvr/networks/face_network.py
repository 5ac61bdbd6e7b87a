"""Pictures and masks of V views -> the parameters of one face.

Axis letters: B batch, V view, C channel, H W image.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from dfmvr.networks.heads import FaceHeads
from dfmvr.networks.inputs import MASK_CHANNELS, network_inputs
from dfmvr.networks.landmark_maps import LandmarkMaps, PlaceReader, expected_places
from dfmvr.networks.late_fusion import LateFusion, PlainCnn, UNet
from dfmvr.networks.mulen_unet import MulEnUnet
from dfmvr.networks.per_view import PerViewNetwork
from dfmvr.networks.rednet import RedNet
from dfmvr.networks.residual import initialise
from dfmvr.networks.resnet import ResNet
from dfmvr.networks.set_network import SetNetwork
from dfmvr.networks.settings import NetworkSettings
from dfmvr.types import FaceParams

MAP_STRIDE = 4
"""The heat maps are drawn at a quarter of the picture's size."""
PLACE_FEATURES = 512
"""Features that the landmarks' places are read into."""


def build_network(settings: NetworkSettings) -> FaceNetwork | PerViewNetwork | SetNetwork:
    """Build the network that the settings name; its weights come from torch's global random state."""
    in_channels = 3 + MASK_CHANNELS[settings.mask_input]
    if settings.name == "resnet_per_view":
        per_view = ResNet(in_channels, settings.regressor_channels)
        return PerViewNetwork(per_view, settings.mask_input, settings.aggregation)
    n_views, channels = settings.n_views, settings.fusion_channels
    in_channels += settings.view_flags and settings.name != "set_rednet"  # which has no blank views to flag
    patches = None
    if settings.input_stride > 1:
        patches = PatchEmbedding(in_channels, channels, settings.input_stride)
        in_channels = channels
    if settings.name == "set_rednet":
        return SetNetwork(settings, patches, in_channels, _finest_map_level(settings), PLACE_FEATURES)
    fusion: MulEnUnet | LateFusion
    match settings.name:
        case "mulen_unet_rednet" | "mulen_unet_resnet":
            fusion = MulEnUnet(
                n_views,
                in_channels,
                channels,
                shared_encoders=settings.shared_encoders,
                attention_gates=settings.attention_gates,
            )
        case "unet_rednet":
            fusion = LateFusion(n_views, in_channels, channels, UNet)
        case "cnn_rednet":
            fusion = LateFusion(n_views, in_channels, channels, PlainCnn)
        case _:
            raise ValueError(f"network.name: cannot build {settings.name!r}")
    regressor: ResNet | RedNet
    if settings.name.endswith("_resnet"):
        regressor = ResNet(fusion.out_channels, settings.regressor_channels)
    else:
        regressor = RedNet(
            fusion.out_channels, settings.regressor_channels, bounded_kernels=settings.bounded_kernels
        )
    features = regressor.out_features
    if not settings.landmark_maps:
        heads = FaceHeads(features, n_views, settings.shared_light)
        return FaceNetwork(patches, fusion, regressor, heads, settings)
    levels = fusion.pyramid_channels[_finest_map_level(settings) :]
    maps = nn.ModuleList(LandmarkMaps(levels) for _ in range(n_views))
    reader = PlaceReader(n_views, PLACE_FEATURES)
    heads = FaceHeads(features + PLACE_FEATURES, n_views, settings.shared_light)
    return FaceNetwork(patches, fusion, regressor, heads, settings, maps, reader)


def _finest_map_level(settings: NetworkSettings) -> int:
    """Return the level of the encoders' pyramids at whose size the heat maps are drawn."""
    return (MAP_STRIDE // settings.input_stride).bit_length() - 1


class PatchEmbedding(nn.Module):
    """Each view's patches of stride x stride pixels -> their features, the same way in all views.

    Args:
        in_channels: channels of a view.
        channels: of a patch.
        stride: side of the patches, pixels.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.embed = nn.Conv2d(in_channels, channels, stride, stride)
        initialise(self)

    def forward(self, views: Tensor) -> Tensor:
        """Return [B, V, channels, H / stride, W / stride] for views [B, V, in_channels, H, W].

        Raises:
            ValueError: the patches do not fill the picture.
        """
        height, width = views.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(
                f"image size: expected multiples of {self.stride} for both sides, got {height} x {width}"
            )
        return self.embed(views.flatten(0, 1)).unflatten(0, views.shape[:2])


class FaceNetwork(nn.Module):
    """Fusion of the views, regression, heads.

    Args:
        patches: what the fusion sees in place of pixels; None: pixels.
        fusion: [B, V, C, H, W] -> a fusion feature [B, F, H, W], and each view's feature pyramid.
        regressor: the fusion feature -> [B, features].
        heads: [B, features] -> FaceParams.
        settings: says how pictures come in, and where the maps are drawn.
        maps: for each view, its feature pyramid -> scores of the landmarks [B, 68, h, w]; None: without.
        reader: the places of all views [B, V, 68, 2] -> [B, features] that the heads see as well.
    """

    def __init__(
        self,
        patches: PatchEmbedding | None,
        fusion: nn.Module,
        regressor: nn.Module,
        heads: FaceHeads,
        settings: NetworkSettings,
        maps: nn.ModuleList | None = None,
        reader: PlaceReader | None = None,
    ) -> None:
        super().__init__()
        self.patches = patches
        self.fusion = fusion
        self.regressor = regressor
        self.heads = heads
        self.settings = settings
        self.maps = maps
        self.reader = reader

    def forward(
        self,
        images: Tensor,
        masks: Tensor,
        view_present: Tensor | None = None,
        view_yaws: Tensor | None = None,
    ) -> FaceParams:
        """Predict the faces.

        Args:
            images: [B, V, 3, H, W] RGB in [0, 1].
            masks: [B, V, H, W] int64 region labels 0-9.
            view_present: [B, V] bool; None: all. Pictures of other views are not looked at, and the poses and
                lights predicted for them mean nothing. Without `view_flags` it is not looked at itself:
                something must stand in for what is missing.
            view_yaws: not looked at; each view has its place (see SetNetwork).

        Raises:
            ValueError: when images and masks do not fit each other or the network.
        """
        present = None
        if self.settings.view_flags:
            everything = torch.ones(images.shape[:2], dtype=torch.bool, device=images.device)
            present = everything if view_present is None else view_present
        views = network_inputs(images, masks, self.settings.mask_input, present)
        if self.patches is not None:
            views = self.patches(views)
        fused, pyramids = self.fusion(views)
        features = self.regressor(fused)
        if self.maps is None or self.reader is None:
            return self.heads(features)
        finest = _finest_map_level(self.settings)
        levels = [pyramid[finest:] for pyramid in pyramids]
        scores = torch.stack([draw(view) for draw, view in zip(self.maps, levels, strict=True)], 1)
        places = expected_places(scores)
        params: FaceParams = self.heads(torch.cat([features, self.reader(places, present)], 1))
        return dataclasses.replace(params, landmark_scores=scores)
