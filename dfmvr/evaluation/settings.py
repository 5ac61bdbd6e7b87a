"""What decides a measurement."""

from __future__ import annotations

from dataclasses import dataclass

from dfmvr.types import NINE_VIEWS

DISTANCE_BACKENDS = ("auto", "open3d", "kdtree")


@dataclass(frozen=True)
class EvaluationSettings:
    """How predictions are registered to scans, measured and shown."""

    crop_factor: float = 1.4
    """The scan is cut to a ball of radius `crop_factor` x (outer eye distance + nose length) / 2 (NoW)."""
    icp_points: int = 1500
    """Scan vertices that drive the registration, spread evenly over the cropped scan."""
    icp_iterations: int = 30
    """Most Gauss-Newton steps of a registration; it stops earlier when it has converged."""
    icp_tolerance: float = 1e-3
    """mm: a registration has converged when a step moves no point of the scan by more than this."""
    distance_backend: str = "auto"
    """Point-to-surface distances: `open3d` (exact), `kdtree` (scipy), or `auto`: open3d where it imports."""
    floor_ridge: float = 1e-6
    """Ridge of the best 3DMM fit, relative to the mean diagonal of its normal matrix; 0 = least squares."""
    max_samples: int | None = None
    """Measure only the first so many test samples; None = all."""
    given_views: tuple[str, ...] = ()
    """Views that the network is given; the others are missing (paper 5.3). Empty = all."""
    batch_size: int = 8
    """Samples that go through the network at once."""
    gallery: int = 6
    """Samples pictured in the report, spread evenly from the best to the worst."""
    bootstrap_draws: int = 2000
    """Resamplings of the subjects behind the confidence interval."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be measured with."""
        object.__setattr__(self, "given_views", tuple(self.given_views))
        if unknown := set(self.given_views) - set(NINE_VIEWS):
            raise ValueError(
                f"evaluation.given_views: expected some of {NINE_VIEWS}, or none for all, "
                f"got {sorted(unknown)}"
            )
        for name in ("crop_factor", "icp_tolerance"):
            if not getattr(self, name) > 0:
                raise ValueError(f"evaluation.{name}: expected a positive number, got {getattr(self, name)}")
        for name, least in (
            ("icp_points", 100),
            ("icp_iterations", 1),
            ("batch_size", 1),
            ("gallery", 0),
            ("bootstrap_draws", 100),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"evaluation.{name}: expected at least {least}, got {getattr(self, name)}")
        if self.floor_ridge < 0:
            raise ValueError(f"evaluation.floor_ridge: expected 0 or more, got {self.floor_ridge}")
        if self.max_samples is not None and self.max_samples < 1:
            raise ValueError(f"evaluation.max_samples: expected None or at least 1, got {self.max_samples}")
        if self.distance_backend not in DISTANCE_BACKENDS:
            raise ValueError(
                f"evaluation.distance_backend: expected one of {DISTANCE_BACKENDS}, "
                f"got {self.distance_backend!r}"
            )
