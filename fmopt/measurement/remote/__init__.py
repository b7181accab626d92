"""A board at the end of an ssh line, as a device that is measured."""
