"""Monitor: diagnose a network while it trains."""
