"""The contents of a checkpoint: state dicts, sections, training state, dangerous names."""
