"""A bundle behind HTTP: requests in, batches through the model, answers out."""
