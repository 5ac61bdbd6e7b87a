"""Faces made in the training step, on the device that trains: nothing stored, nothing decoded."""
