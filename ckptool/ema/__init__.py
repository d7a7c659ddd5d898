"""Search for the EMA weights of a checkpoint; ``locate.py`` has the rules."""
