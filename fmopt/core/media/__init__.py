"""Image and audio files: made of arrays, made up, and checked."""
