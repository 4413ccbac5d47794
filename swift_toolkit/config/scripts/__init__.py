"""Shell lines and scripts that start ms-swift, and old requests in today's names."""
