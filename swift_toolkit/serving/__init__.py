"""What is served and to whom: the plan, the gateway, the worker process."""
