"""Data sets: formats, checks, report, preview, clean copies."""
