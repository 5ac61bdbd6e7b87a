"""Losses of weakly supervised training: pure and unreduced."""
