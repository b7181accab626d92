"""Networks changed in place: pruned modules, replaced projections."""
