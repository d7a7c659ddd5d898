"""Pickles read as data: the machine, the calls that it understands, the trust of names."""
