"""What runs on a board at the end of an ssh line."""
