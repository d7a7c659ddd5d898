"""What several tests share: checkpoints to make, runs of the command line, judges."""
