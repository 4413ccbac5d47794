"""The memory that a run needs, before it starts."""
