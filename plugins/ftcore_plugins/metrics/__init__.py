"""Built-in answers to make_metrics."""
