"""Renderers of reports as text, JSON and other formats; they know no checkpoint."""
