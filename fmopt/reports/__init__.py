"""Pages and tables drawn from a record."""
