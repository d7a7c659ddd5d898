"""Plans of the output of a command, made before anything is written."""
