"""Does a model file answer like the checkpoint it was made of."""
