"""ONNX graphs that come in place of a network: where they lie, what they take and give, and whether they can be trusted."""
