"""Checkpoints of many ranks: tensors that were cut, and the files of every process."""
