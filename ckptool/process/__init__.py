"""This process: signals that end it, and ranks that share its work."""
