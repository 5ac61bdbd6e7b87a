"""Entry points that run on Ray: thin, and without science."""
