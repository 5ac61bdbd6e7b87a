"""The reconstruction endpoint on Ray Serve: HTTP around the Predictor, thin, without science."""
