"""A job from what is asked for to what is left of it: looked up, checked, started, published."""
