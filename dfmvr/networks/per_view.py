"""A baseline without fusion: one network looks at each view by itself, and its answers are averaged.

Identity, expression and albedo are of the face and averaged over the views; pose and light are of the view.
Averaging identity coefficients is the strong and simple way to use several pictures (Deng et al., 2019).

Axis letters: B batch, V view, C channel, H W image, P parameter.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dfmvr.networks.heads import FaceHeads
from dfmvr.networks.inputs import network_inputs
from dfmvr.networks.residual import ResidualNet
from dfmvr.types import FaceParams


class PerViewNetwork(nn.Module):
    """Regression of each view, then the average.

    Args:
        regressor: a view [B, C, H, W] -> [B, features].
        mask_input: see NetworkSettings.
        aggregation: likewise; `confidence` adds a linear layer that says how much a view counts.
    """

    def __init__(self, regressor: ResidualNet, mask_input: str, aggregation: str) -> None:
        super().__init__()
        self.regressor = regressor
        self.heads = FaceHeads(regressor.out_features, n_views=1)
        self.mask_input = mask_input
        self.confidence = nn.Linear(regressor.out_features, 1) if aggregation == "confidence" else None

    def forward(
        self,
        images: Tensor,
        masks: Tensor,
        view_present: Tensor | None = None,
        view_yaws: Tensor | None = None,
    ) -> FaceParams:
        """Predict the faces from any number of views.

        Args:
            images: [B, V, 3, H, W] RGB in [0, 1].
            masks: [B, V, H, W] int64 region labels 0-9.
            view_present: [B, V] bool, at least one of a sample; None: all. Other views do not count, and
                their poses and lights mean nothing.
            view_yaws: not looked at.

        Raises:
            ValueError: when images and masks do not fit each other.
        """
        batch, views = images.shape[:2]
        features = self.regressor(network_inputs(images, masks, self.mask_input).flatten(0, 1))
        each: FaceParams = self.heads(features)
        scores = features.new_zeros(batch, views)
        if self.confidence is not None:
            scores = self.confidence(features).reshape(batch, views).to(scores.dtype)
        if view_present is not None:
            scores = scores.masked_fill(~view_present, -torch.inf)
        shares = scores.softmax(1).unsqueeze(-1)

        def average(values: Tensor) -> Tensor:
            return (shares * values.unflatten(0, (batch, views))).sum(1)

        def of_views(values: Tensor) -> Tensor:
            return values.squeeze(1).unflatten(0, (batch, views))

        return FaceParams(
            identity=average(each.identity),
            expression=average(each.expression),
            albedo=average(each.albedo),
            light=of_views(each.light),
            rotation=of_views(each.rotation),
            translation=of_views(each.translation),
        )
