"""The process in which a run, or one rank of it, takes place."""
