"""What calibration items tell: statistics, ranges, distances of outputs."""
