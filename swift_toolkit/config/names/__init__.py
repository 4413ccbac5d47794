"""The names that the installed ms-swift takes, and those of its other generations."""
