"""Settings of the network that turns pictures into face parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

PAPER_BASE_CHANNELS = 64
"""Channels of the finest level, and of RedNet's first stage, at width 1."""

NETWORKS = ("mulen_unet_rednet",)
MASK_INPUTS = ("one_hot", "scalar", "none")


@dataclass(frozen=True)
class NetworkSettings:
    """What network to build."""

    name: str = "mulen_unet_rednet"
    """`mulen_unet_rednet`: MulEn-Unet fuses the views, RedNet-50 regresses (paper 3.3, 3.4)."""
    width: float = 1.0
    """Channels of every layer relative to the paper's; 64 x width is 4, 8 or a multiple of 16."""
    n_views: int = 3
    """Number of views V; each has its own encoder, pose and light."""
    mask_input: str = "one_hot"
    """How a view's face mask joins its picture. `one_hot`: ten channels, one a region (the paper's text).
    `scalar`: one channel that holds the label 0-9 (the paper's count of parameters). `none`: left out."""

    def __post_init__(self) -> None:
        if self.name not in NETWORKS:
            raise ValueError(f"network.name: expected one of {NETWORKS}, got {self.name!r}")
        if self.mask_input not in MASK_INPUTS:
            raise ValueError(f"network.mask_input: expected one of {MASK_INPUTS}, got {self.mask_input!r}")
        if self.n_views < 1:
            raise ValueError(f"network.n_views: expected at least 1, got {self.n_views}")
        channels = PAPER_BASE_CHANNELS * self.width
        if channels not in (4, 8) and (channels < 16 or channels % 16):
            raise ValueError(
                f"network.width: expected {PAPER_BASE_CHANNELS} x width = 4, 8 or a multiple of 16, "
                f"got {PAPER_BASE_CHANNELS} x {self.width:g} = {channels:g}"
            )

    @property
    def base_channels(self) -> int:
        """Channels of the finest level."""
        return int(PAPER_BASE_CHANNELS * self.width)


PRESETS: Mapping[str, NetworkSettings] = MappingProxyType(
    {
        "paper": NetworkSettings(mask_input="scalar"),
        "quarter": NetworkSettings(width=1 / 4),
        "eighth": NetworkSettings(width=1 / 8),
    }
)
"""`paper` is the network of the paper's tables; the others fit a CPU, at 112 and 64-96 pixels."""
