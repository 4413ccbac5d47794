"""Comparing the answers of an exported model with those of its checkpoint."""
