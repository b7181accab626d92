"""Plan, build, time and select candidates."""
