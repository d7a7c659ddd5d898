"""Puts new files in place, whole or not at all; one module a format."""
