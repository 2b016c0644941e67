"""Built-in answers to make_step."""
