"""SQL: history for good."""
