"""Time, memory and the ceilings of a device."""
