"""One output file: created hidden, written, synced, renamed."""
