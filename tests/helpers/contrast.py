"""Contrast of two colours, as the Web Content Accessibility Guidelines compute it."""

from __future__ import annotations


def luminance(color: str) -> float:
    """Return the relative luminance of ``#rrggbb``.

    https://www.w3.org/TR/WCAG22/#dfn-relative-luminance
    """
    shares = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return sum(weight * s for weight, s in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours, from 1 to 21."""
    darker, lighter = sorted(map(luminance, (one, other)))
    return (lighter + 0.05) / (darker + 0.05)
