"""The options that several commands share, and usage errors in one sentence."""
