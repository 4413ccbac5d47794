"""The processes that train: launch, events, worker."""
