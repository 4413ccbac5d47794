"""How a checked request reaches a model."""
