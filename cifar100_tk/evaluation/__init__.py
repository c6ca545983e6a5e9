"""The worth of a model: predictions, metrics, and the files and tables that hold them."""
