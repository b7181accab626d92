"""Values that everybody shares: errors, results, store, plug-ins, target, recipe, model, formatting."""
