"""Is what was exported what the checkpoint is? Graphs against networks, and bundles against the checkpoint's own pipeline."""
