"""Differentiable rasterisation behind one protocol."""
