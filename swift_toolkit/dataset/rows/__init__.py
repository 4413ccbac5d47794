"""Rows: formats, messages, checks, media, flaws."""
