"""Built-in answers to precision_context."""
