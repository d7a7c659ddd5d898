"""Two checkpoints held against each other: what corresponds, what differs, and by how much."""
