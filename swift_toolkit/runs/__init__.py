"""Runs: directory, record, resuming, table."""
