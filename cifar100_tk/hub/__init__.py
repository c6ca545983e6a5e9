"""The Hugging Face Hub: a finished run as a folder with its card, measured again before it goes up as one commit."""
