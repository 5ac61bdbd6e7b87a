"""Settings of the network that turns pictures into face parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

PAPER_BASE_CHANNELS = 64
"""Channels of the finest level, and of RedNet's first stage, at width 1."""

NETWORKS = (
    "mulen_unet_rednet",
    "mulen_unet_resnet",
    "unet_rednet",
    "cnn_rednet",
    "resnet_per_view",
    "set_rednet",
)
AGGREGATIONS = ("mean", "confidence")
MASK_INPUTS = ("one_hot", "scalar", "none")
INPUT_STRIDES = (1, 2, 4)


@dataclass(frozen=True)
class NetworkSettings:
    """What network to build."""

    name: str = "mulen_unet_rednet"
    """`mulen_unet_rednet`: MulEn-Unet fuses the views, RedNet-50 regresses (paper 3.3, 3.4). For ablations:
    `mulen_unet_resnet` has ResNet-50 (v3); `unet_rednet` a U-Net a view (v2) and `cnn_rednet` a plain CNN a
    view (v1), whose features are concatenated. `resnet_per_view` is no fusion but a baseline: ResNet-50
    looks at each view by itself, and the answers are averaged. `set_rednet` takes any number of views in any
    order (networks/set_network.py)."""
    width: float = 1.0
    """Channels of the fusion network relative to the paper's; 64 x width is 4, 8 or a multiple of 16."""
    regressor_width: float | None = None
    """The same for the regressor, cheap beside the fusion network: it can stay wider. None: as `width`."""
    landmark_maps: bool = False
    """Heat maps of the 68 landmarks in every view, whose places join the regressor's features: a network then
    learns shape in a fraction of the steps (networks/landmark_maps.py). The paper has none."""
    n_views: int = 3
    """Number of views V; each has its own encoder, pose and light. `set_rednet`: the most in training."""
    mask_input: str = "one_hot"
    """How a view's face mask joins its picture. `one_hot`: ten channels, one a region (the paper's text).
    `scalar`: one channel that holds the label 0-9 (the paper's count of parameters). `none`: left out."""

    input_stride: int = 1
    """Side in pixels of the patches that are embedded as one place of the finest level: 1, 2 or 4. The paper
    works at every pixel; 2 leaves a quarter of the arithmetic."""
    shared_encoders: bool = False
    """One encoder for all views of MulEn-Unet; the paper has one a view."""
    attention_gates: bool = True
    """Let MulEn-Unet's decoder weigh the skips; False hands them on as they are."""
    shared_light: bool = False
    """One light for all views, as the paper's text has it; else each view has its own."""
    view_flags: bool = False
    """Tell the network of missing views: they come in blank, with a flag. Else another view stands in."""
    aggregation: str = "mean"
    """How resnet_per_view averages its answers: all views alike (`mean`), or by how sure each is of itself
    (`confidence`, learnt; Deng et al., 2019)."""
    bounded_kernels: bool = True
    """Cut the features of RedNet's kernels at six, so that no picture overflows; the paper does not."""

    def __post_init__(self) -> None:
        if self.name not in NETWORKS:
            raise ValueError(f"network.name: expected one of {NETWORKS}, got {self.name!r}")
        if self.mask_input not in MASK_INPUTS:
            raise ValueError(f"network.mask_input: expected one of {MASK_INPUTS}, got {self.mask_input!r}")
        if self.input_stride not in INPUT_STRIDES:
            raise ValueError(
                f"network.input_stride: expected one of {INPUT_STRIDES}, got {self.input_stride}"
            )
        if self.n_views < 1:
            raise ValueError(f"network.n_views: expected at least 1, got {self.n_views}")
        if self.landmark_maps and self.name in ("cnn_rednet", "resnet_per_view"):
            raise ValueError(f"network.landmark_maps: expected false for {self.name}, which has no pyramid")
        if self.name == "resnet_per_view" and self.input_stride != 1:
            raise ValueError(f"network.input_stride: expected 1 for {self.name}, got {self.input_stride}")
        if self.aggregation not in AGGREGATIONS:
            raise ValueError(f"network.aggregation: expected one of {AGGREGATIONS}, got {self.aggregation!r}")
        if self.name == "resnet_per_view" and not self.view_flags:
            raise ValueError("network.view_flags: expected true for resnet_per_view, which needs no stand-in")
        self._check_set()
        if not self.name.startswith("mulen_unet") and (self.shared_encoders or not self.attention_gates):
            raise ValueError(
                f"network.shared_encoders, network.attention_gates: expected false and true for {self.name}, "
                "which has neither"
            )
        if not self.bounded_kernels and not self.name.endswith("_rednet"):
            raise ValueError(f"network.bounded_kernels: expected true for {self.name}, which has no kernels")
        _channels("width", self.width)
        if self.regressor_width is not None:
            _channels("regressor_width", self.regressor_width)

    def _check_set(self) -> None:
        if self.name == "set_rednet" and (self.shared_light or not self.view_flags):
            raise ValueError(
                "network.shared_light, network.view_flags: expected false and true for set_rednet, whose "
                "views have each their own light, and of which any may be missing"
            )

    @property
    def fusion_channels(self) -> int:
        """Channels of the fusion network's finest level."""
        return _channels("width", self.width)

    @property
    def regressor_channels(self) -> int:
        """Channels of the regressor's first stage."""
        if self.regressor_width is None:
            return self.fusion_channels
        return _channels("regressor_width", self.regressor_width)


def _channels(name: str, width: float) -> int:
    channels = PAPER_BASE_CHANNELS * width
    if channels not in (4, 8) and (channels < 16 or channels % 16):
        raise ValueError(
            f"network.{name}: expected {PAPER_BASE_CHANNELS} x width = 4, 8 or a multiple of 16, "
            f"got {PAPER_BASE_CHANNELS} x {width:g} = {channels:g}"
        )
    return int(channels)


PRESETS: Mapping[str, NetworkSettings] = MappingProxyType(
    {
        "paper": NetworkSettings(mask_input="scalar", bounded_kernels=False),
        "quarter": NetworkSettings(width=1 / 4, regressor_width=1 / 2, landmark_maps=True),
        "eighth": NetworkSettings(width=1 / 8, regressor_width=1 / 2, landmark_maps=True),
    }
)
"""`paper` is the network of the paper's tables; the others fit a CPU, at 112 and 64-96 pixels."""
