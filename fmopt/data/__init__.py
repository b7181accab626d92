"""Files to splits of items."""
