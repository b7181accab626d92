"""fmopt: make a pretrained Transformer as small and fast on your device as its accuracy allows, and prove it."""
