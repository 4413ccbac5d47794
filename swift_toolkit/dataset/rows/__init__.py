"""What a row is, and what can be wrong with it."""
