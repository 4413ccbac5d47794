"""The setting names of the installed ms-swift and of its other generations."""
