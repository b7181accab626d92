"""What a graph should take on a device, and why it does not."""
