"""What training minimises: pure terms, one file a kind, and their weighted sum."""
