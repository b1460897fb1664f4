"""Finds the coarsest rounding that keeps the outputs at a given signal-to-noise ratio."""

from __future__ import annotations

from .search import Found, RoundingSearch, search_rounding

__all__ = ["Found", "RoundingSearch", "search_rounding"]
