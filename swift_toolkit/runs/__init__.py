"""A run's directory and its record."""
