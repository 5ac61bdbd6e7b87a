"""Benchmarks: one script a question; each prints JSON, peers timed in the same run."""
