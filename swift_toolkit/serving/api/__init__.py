"""Requests and responses of the OpenAI API."""
