"""GGUF files, the format of llama.cpp: what they say, checked, and the checkpoint folder that becomes of one."""
