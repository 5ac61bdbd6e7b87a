"""What the commands raise when what the user gave cannot be used."""

from __future__ import annotations


class UserError(ValueError):
    """What the user gave cannot be used; the message is all that is printed."""
