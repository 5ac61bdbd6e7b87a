"""What the tables compare: systems, how each is measured, and the paper's own figures."""

from __future__ import annotations

from dataclasses import dataclass

REFERENCE = "configs/ablation/v6.yaml"
"""Whose data set and measurement all systems share."""
ANGLES = (10, 20, 30, 45)
"""Degrees between the left and the front view in Table 4."""
SEEDS = (0, 1, 2)
"""Of the systems that the margin compares."""


@dataclass(frozen=True)
class System:
    """A way to make a face from photographs, trained alike but for what its configuration says."""

    name: str
    """Its runs are `{name}-s{seed}`."""
    title: str
    config: str
    """File below configs/, without the ending."""
    seeds: tuple[int, ...] = (0,)
    epochs: int = 1
    """Passes over the training split, relative to the other systems'."""


SYSTEMS = (
    System("v1", "v1: a CNN a view, late concatenation, RedNet-50", "ablation/v1"),
    System("v2", "v2: a U-Net a view, late concatenation, RedNet-50", "ablation/v2"),
    System("v3", "v3: MulEn-Unet, ResNet-50", "ablation/v3"),
    System("v4", "v4: no face mask, neither as input nor as loss", "ablation/v4"),
    System("v5", "v5: no 3D landmarks", "ablation/v5"),
    System("v6", "v6: MulEn-Unet, RedNet-50, all", "ablation/v6", SEEDS),
    System("deep3d", "Deep3DFace-style", "baseline/deep3d"),
    System("deep3d_3d", "Deep3DFace-style, with 3D landmarks", "baseline/deep3d_3d", SEEDS),
    System("confidence", "the same, confidence-weighted", "baseline/confidence", SEEDS[:2]),
    System("mgcnet", "MGCNet-style", "baseline/mgcnet"),
    System("ours", "ours: v6 with landmark maps", "ablation/ours", SEEDS),
    System("v6_single_view", "v6 for one to three views", "ablation/v6_single_view"),
    System("v6_scaled", "v6, the size of 3D landmarks aligned too", "ablation/v6_scaled"),
    System("wrong_light", "one light, turned as the last view", "defect/wrong_light"),
    System("shaded_unevenness", "albedo's unevenness taken of shaded colour", "defect/shaded_unevenness"),
    System("rms_alignment", "3D landmarks aligned by a ratio of sizes", "defect/rms_alignment"),
    System("no_mask_gradient", "no gradient from the mask loss", "defect/no_mask_gradient"),
)
"""Those of the tables."""
LIGHTER = (
    System("light", "ours on patches of 2 x 2 pixels, half the regressor", "beyond/light", SEEDS),
    System("light_plain", "v6 on patches of 2 x 2 pixels", "beyond/light_plain"),
    System("narrow", "v6 with half the channels", "beyond/narrow"),
)
"""What `benchmarks.light` sets beside v6 and ours."""
BY_NAME = {system.name: system for system in (*SYSTEMS, *LIGHTER)}
BASELINES = ("deep3d", "deep3d_3d", "confidence", "mgcnet")
VARIANTS = ("v1", "v2", "v3", "v4", "v5", "v6")
DEFECTS = ("no_mask_gradient", "wrong_light", "shaded_unevenness", "v6_scaled", "rms_alignment")


@dataclass(frozen=True)
class Condition:
    """Which pictures a network is given of a test sample."""

    name: str
    given_views: tuple[str, ...] = ()
    """The others are missing; empty = all."""
    left_angle: int | None = None
    """Degrees between left and front view; None = the benchmark's own. 0 = one of ANGLES, by chance."""


ALL = Condition("all")
ONE_VIEW = {name: Condition(name, (name,)) for name in ("left", "front", "right")}
TURNED = (*(Condition(f"left{angle}", left_angle=angle) for angle in ANGLES[:-1]), ALL)
"""In the order of ANGLES; the benchmark's own is the last of them."""
RANDOM = Condition("random", left_angle=0)
