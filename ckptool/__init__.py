"""Look into training checkpoints, find the averaged weights, get them out. Executes nothing."""

__version__ = "0.1.0"
