"""Serving models: the plan, the gateway, the worker process."""
