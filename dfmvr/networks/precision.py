"""Where a network that runs under autocast must not lose digits.

bfloat16 has eight significant bits: half a pixel of 224, or a rotation that is none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


@contextlib.contextmanager
def full_precision(x: Tensor) -> Iterator[Tensor]:
    """Switch autocast off, and give x in float32 or, where it is that already, float64."""
    kind = x.device.type
    available = torch.amp.is_autocast_available(kind)  # not where only shapes are computed (meta)
    with torch.autocast(kind, enabled=False) if available else contextlib.nullcontext():
        yield x.to(torch.promote_types(x.dtype, torch.float32))
