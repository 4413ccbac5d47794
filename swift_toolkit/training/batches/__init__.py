"""The rows of an optimiser step: batch size, padding, distribution."""
