"""Shell commands and scripts that start ms-swift, and old requests rewritten with current names."""
