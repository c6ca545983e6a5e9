"""Evaluation of a model: predictions, metrics, and the files and tables that present them."""
