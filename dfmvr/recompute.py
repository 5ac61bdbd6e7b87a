"""Memory for arithmetic: what the backward pass computes again instead of keeping."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Tensor], *arguments: object) -> Tensor:
    """Call a cheap function that would keep much for its gradient, or returns much that is needed again.

    Args:
        function: deterministic, without state.
        arguments: kept in place of what the function computes.
    """
    if not any(isinstance(argument, Tensor) and argument.requires_grad for argument in arguments):
        return function(*arguments)  # tensors of inference mode can be kept for nothing
    result: Tensor = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return result
