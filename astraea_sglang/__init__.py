"""Astraea schedules whole agent programs, not single requests, inside SGLang (arXiv 2512.14142)."""

__version__ = "0.1.0"
