"""Settings of the data a network reads: where it lies, how it is batched, shuffled and augmented."""

from __future__ import annotations

from dataclasses import dataclass

from dfmvr.types import FRONT, NINE_VIEWS, VIEW_NAMES


@dataclass(frozen=True)
class DataSettings:
    """What is read from a data set, and how."""

    uri: str = "data/synthetic"
    """Folder of the data set: a local path, or s3://bucket/prefix."""
    on_the_fly: bool = False
    """Make training and validation samples in the step, as `synthetic` says, in place of reading a data set
    (data.on_the_fly.generator): as many an epoch as the set would have, other ones in each."""
    image_size: int = 112
    """Pixels a side; images of another size are bad rows."""
    views: tuple[str, ...] = VIEW_NAMES
    """Views taken from each sample, in this order; a sample without one of them is a bad row."""
    batch_size: int = 8
    """Samples a batch, for each worker."""
    shuffle_rows: int = 128
    """Rows (still encoded) of the buffer that training samples are drawn from; files are shuffled as well."""
    prefetch_batches: int = 2
    """Batches fetched ahead of the one in use."""
    max_bad_share: float = 0.01
    """Share of a split's rows that may be bad before reading stops with an error."""
    augment: bool = True
    """Vary the colours and the sharpness of training images."""
    colour_jitter: float = 0.5
    """Brightness, contrast, saturation and sharpness are multiplied by U(1 - this, 1 + this)."""
    blur_probability: float = 0.3
    """Share of the training samples that is blurred."""
    missing_mask_share: float = 0.0
    """Share of the training samples without masks (all background), like photographs that nobody parsed."""
    missing_view_share: float = 0.0
    """Share of the training samples that lack side views (paper 5.3: 1/3)."""
    tell_missing_views: bool = False
    """Leave missing views out and tell the network (network.view_flags); else the front view stands in."""
    single_views: bool = False
    """Train on every view by itself, like a sample: for networks that look at each view by itself."""
    fewest_views: int = 0
    """Train on this many of the views to all of them: a number for each batch, and other views, in another
    order, for each of its samples (network set_rednet). 0: always on all, in their order."""
    untold_yaw_share: float = 0.0
    """Share of the training samples whose views' yaws are unknown."""
    weight_dilation: float = 20.0
    """Pixels by which the weight map's regions grow at 224 px; scaled with the image size."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "views", tuple(self.views))
        _require(bool(self.uri), "uri", "a path or URI", self.uri)
        unknown = [name for name in self.views if name not in NINE_VIEWS]
        valid_views = bool(self.views) and not unknown and len(set(self.views)) == len(self.views)
        _require(valid_views, "views", f"one or more of {', '.join(NINE_VIEWS)}, each once", self.views)
        for name in ("image_size", "batch_size", "shuffle_rows", "prefetch_batches"):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in _SHARES:
            _require(0 <= getattr(self, name) <= 1, name, "a share in [0, 1]", getattr(self, name))
        can_lack = not self.missing_view_share or FRONT in self.views
        _require(can_lack, "missing_view_share", f"0 for views without {FRONT!r}", self.missing_view_share)
        most = 0 if self.missing_view_share else len(self.views)
        _require(0 <= self.fewest_views <= most, "fewest_views", f"0 to {most}", self.fewest_views)
        _require(0 <= self.colour_jitter < 1, "colour_jitter", "a number in [0, 1)", self.colour_jitter)
        _require(self.weight_dilation >= 0, "weight_dilation", "at least 0 pixels", self.weight_dilation)


_SHARES = (
    "max_bad_share",
    "blur_probability",
    "missing_mask_share",
    "missing_view_share",
    "untold_yaw_share",
)


def _require(condition: bool, field: str, expected: str, got: object) -> None:
    if not condition:
        raise ValueError(f"data.{field}: expected {expected}, got {got!r}")
