"""The page that a bundle for browsers has, and what serves it."""
