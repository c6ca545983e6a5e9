"""A run on disk: its folder, its checkpoints, and summaries of finished runs."""
