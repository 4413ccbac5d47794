"""Passing checked requests to a model."""
