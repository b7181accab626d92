"""A Ray cluster: nodes that say what they are, tasks on them, and a clock that has one of them for itself."""
