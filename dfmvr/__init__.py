"""3D faces from a few photographs, trained, swept and served on Ray."""

__version__ = "0.1.0"
