"""A training run: the plan, the automatic settings, the launch, the run, the worker process."""
