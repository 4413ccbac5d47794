"""Audit of what a run would learn from its rows, by ms-swift's own template: which tokens count for the loss."""
