"""Exporting a checkpoint as a model for other programs."""
