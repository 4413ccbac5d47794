"""Runs: directory, record, resumption, table."""
