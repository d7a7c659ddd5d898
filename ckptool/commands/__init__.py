"""One module a subcommand: checkpoints in, a report out. No terminal, no exit codes."""
