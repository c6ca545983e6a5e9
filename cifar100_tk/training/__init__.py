"""One run while it trains: its plan, batches, state, reports and end."""
