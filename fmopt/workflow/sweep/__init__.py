"""Several models × targets × data: a search over recipes and their options for each, beside the fixed plan, in one page."""
