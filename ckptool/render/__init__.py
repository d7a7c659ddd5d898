"""How reports are shown: terminal text, JSON. Renderers take a report and know no checkpoint."""
