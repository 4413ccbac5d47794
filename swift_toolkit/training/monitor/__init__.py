"""Monitoring of a run: its data, progress and metrics."""
