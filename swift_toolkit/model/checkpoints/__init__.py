"""What a checkpoint contains, how it is found, whether it is complete."""
