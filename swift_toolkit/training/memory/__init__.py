"""Estimate of a run's memory needs."""
