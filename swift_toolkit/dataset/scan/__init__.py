"""Scanning of large files: parts, blocks, counts."""
