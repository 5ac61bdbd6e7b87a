"""Samples: stored, read, augmented, batched."""
