"""Questions, answers, scores."""
