"""Going through large files: parts, blocks, counts."""
