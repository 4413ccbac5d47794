"""What is watched while a run goes on: its data, its progress, its numbers."""
