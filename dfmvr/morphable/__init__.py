"""The face model: coefficients in, vertices and albedo out."""
