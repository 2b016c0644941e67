"""Built-in answers to make_observers."""
