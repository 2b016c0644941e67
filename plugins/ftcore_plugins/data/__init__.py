"""Built-in answers to build_data."""
