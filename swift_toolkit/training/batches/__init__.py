"""The rows of an optimiser step."""
