"""What a checkpoint is, where it is, whether it is whole."""
