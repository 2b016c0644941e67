"""Built-in answers to wrap_devices."""
