"""Sources of a checkpoint's bytes: a file, memory, or a part of another source."""
