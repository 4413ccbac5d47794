"""Data sets: formats, checks, the report, the preview, clean copies."""
