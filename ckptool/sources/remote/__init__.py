"""Files behind URLs, read by ranges; imported for operands that are URLs alone."""
