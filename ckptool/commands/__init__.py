"""Subcommands, a module each, from checkpoints to reports, without terminal or exit codes."""
