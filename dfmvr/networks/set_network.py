"""Any number of views, in any order, with or without their yaws -> the parameters of one face.

Identity, expression and albedo are of the face and come from what the views say together; pose and light are
of a view and come from what that view and the face say.

Axis letters: B batch, V view, P present view (of all samples, one after the other), C channel, H W image.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from dfmvr.networks.heads import Heads
from dfmvr.networks.inputs import network_inputs
from dfmvr.networks.landmark_maps import LandmarkMaps, expected_places
from dfmvr.networks.precision import full_precision
from dfmvr.networks.rednet import RedNet
from dfmvr.networks.set_fusion import YAW_FEATURES, PresentViews, SetUnet, yaw_features
from dfmvr.networks.set_reader import SetReader
from dfmvr.networks.settings import NetworkSettings
from dfmvr.types import FaceParams


class SetNetwork(nn.Module):
    """Fusion of the views, regression, heads.

    Args:
        settings: `set_rednet`'s.
        patches: views [B, V, C, H, W] -> what is fused in their place; None: the pixels.
        in_channels: of what is fused.
        finest_map_level: level of the encoder's pyramid at whose size the landmarks' maps are drawn.
        place_features: features that the landmarks' places are read into.
    """

    def __init__(
        self,
        settings: NetworkSettings,
        patches: nn.Module | None,
        in_channels: int,
        finest_map_level: int,
        place_features: int,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.patches = patches
        self.finest_map_level = finest_map_level
        self.fusion = SetUnet(in_channels, settings.fusion_channels)
        self.regressor = RedNet(
            self.fusion.out_channels, settings.regressor_channels, bounded_kernels=settings.bounded_kernels
        )
        of_face, of_view = self.regressor.out_features, self.fusion.pyramid_channels[-1] + YAW_FEATURES
        self.maps: LandmarkMaps | None = None
        self.reader: SetReader | None = None
        if settings.landmark_maps:
            self.maps = LandmarkMaps(self.fusion.pyramid_channels[finest_map_level:])
            self.reader = SetReader(place_features)
            of_face, of_view = of_face + place_features, of_view + place_features
        self.heads = SetHeads(of_face, of_view)

    def forward(
        self,
        images: Tensor,
        masks: Tensor,
        view_present: Tensor | None = None,
        view_yaws: Tensor | None = None,
    ) -> FaceParams:
        """Predict the faces.

        Args:
            images: [B, V, 3, H, W] RGB in [0, 1], of any number of views.
            masks: [B, V, H, W] int64 region labels 0-9.
            view_present: [B, V] bool, at least one of a sample; None: all. Other views are not computed, and
                their poses and lights mean nothing.
            view_yaws: [B, V] radians, NaN where unknown; None: all unknown.

        Raises:
            ValueError: when images and masks do not fit each other or the network, or a sample has no view.
        """
        if view_present is None:
            view_present = torch.ones(images.shape[:2], dtype=torch.bool, device=images.device)
        if not bool(view_present.any(1).all()):
            raise ValueError("view_present: expected at least one view of each sample, got one without")
        if view_yaws is None:
            view_yaws = images.new_full(images.shape[:2], torch.nan)
        which = PresentViews(view_present)
        inputs = network_inputs(images, masks, self.settings.mask_input)
        views = which.pack(inputs.movedim(2, -1)).movedim(-1, 1)  # packed as it is stored: channels last
        if self.patches is not None:
            views = self.patches(views.unsqueeze(1)).squeeze(1)
        yaws = which.pack(yaw_features(view_yaws.to(images.dtype)))

        fused, pyramid = self.fusion(views, yaws, which)
        of_face, of_view = [self.regressor(fused)], [pyramid[-1].mean((2, 3)), yaws]
        if self.maps is None or self.reader is None:
            return self.heads(torch.cat(of_face, 1), torch.cat(of_view, 1), which)
        scores = self.maps(pyramid[self.finest_map_level :])
        read, together = self.reader(expected_places(scores), yaws, which)
        of_face.append(together)
        of_view.append(read)
        params: FaceParams = self.heads(torch.cat(of_face, 1), torch.cat(of_view, 1), which)
        return dataclasses.replace(params, landmark_scores=which.unpack(scores))


class SetHeads(Heads):
    """Poses and lights from what a face and a view of it say, all else from what the face says.

    Args:
        of_face: length of a face's feature vector.
        of_view: length of a view's own.
    """

    def __init__(self, of_face: int, of_view: int) -> None:
        super().__init__(of_face, of_face + of_view, n_poses=1, n_lights=1)

    def forward(self, faces: Tensor, views: Tensor, which: PresentViews) -> FaceParams:
        """Return parameters with leading shape [B], never in bfloat16.

        Args:
            faces: [B, of_face].
            views: [P, of_view].
            which: views of which samples these are.
        """
        with full_precision(faces) as wide:
            both = torch.cat([which.spread(wide), views.to(wide.dtype)], 1)
            return self._params(wide, which.unpack(self.pose(both)), which.unpack(self.light(both)))
