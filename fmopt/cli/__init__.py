"""What the verbs of the command do: one call, one printed answer. Heavy modules load inside the verbs."""
