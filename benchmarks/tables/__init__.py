"""The paper's tables on the synthetic benchmark: `python -m benchmarks.tables`."""
