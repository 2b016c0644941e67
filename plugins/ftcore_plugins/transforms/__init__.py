"""Built-in answers to make_transforms and batch_transforms."""
