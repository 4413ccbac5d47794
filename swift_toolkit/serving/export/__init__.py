"""A checkpoint as a model file for elsewhere."""
