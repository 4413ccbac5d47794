"""What a model or checkpoint directory is, whether it is whole, how large it is; merging."""
