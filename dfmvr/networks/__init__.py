"""The fusion network and its parts, one idea a file."""
