"""Built-in answers to make_loss."""
