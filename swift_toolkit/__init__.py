"""What the three commands share: configs, vocabulary, checkpoints, data, the plan and the screen."""

__version__ = "0.1.0"
