"""From a network in PyTorch to a GGUF file, which llama.cpp and what is built on it open."""
