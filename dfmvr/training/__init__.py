"""The training step, its optimiser and its checkpoints."""
