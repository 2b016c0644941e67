"""Built-in answers to build_model."""
