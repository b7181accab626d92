"""Tasks: what a model is for and how it is judged, one file each."""
