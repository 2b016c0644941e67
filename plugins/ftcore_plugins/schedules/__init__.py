"""Built-in answers to make_schedule."""
