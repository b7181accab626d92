"""What every training shares: examples, collation, processes."""
