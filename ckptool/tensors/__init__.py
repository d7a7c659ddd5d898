"""Values of stored tensors, read block by block."""
