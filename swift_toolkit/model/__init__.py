"""What a model or checkpoint directory contains, whether it is complete, how large it is; merging."""
