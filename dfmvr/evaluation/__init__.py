"""Registration, distances and reports in millimetres."""
