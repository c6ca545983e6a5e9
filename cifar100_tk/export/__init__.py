"""Export a model as one file for other programs."""
