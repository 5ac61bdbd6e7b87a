"""From photographs to samples: detect, align, crop, label, weigh."""
