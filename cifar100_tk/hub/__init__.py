"""The Hugging Face Hub: publishes a finished run with its model card as one commit, after re-evaluating it."""
