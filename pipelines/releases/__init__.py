"""Releases: which networks serve together, what must be shown before they do, and how they come and go."""
