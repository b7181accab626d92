"""Numbers and verdicts, without a model: metrics, bootstrap, gate, record, comparison, history."""
