"""Training a student to answer as its teacher does."""
