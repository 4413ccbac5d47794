"""One engine behind every backend: the plan, the worker process, the chat."""
