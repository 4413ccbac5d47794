"""Readers for rows in files of every accepted kind."""
