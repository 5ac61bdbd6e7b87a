"""Rotations, cameras, meshes and alignment, over any leading batch dimensions."""
