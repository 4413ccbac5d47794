"""Inference with one interface for every backend: the plan, the worker process, the chat."""
