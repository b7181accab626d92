"""What a checkpoint does to its input before the network."""
