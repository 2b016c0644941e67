"""Built-in answers to param_groups and make_optimizer."""
