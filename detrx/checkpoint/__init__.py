"""Saving, loading and converting weights."""

from .detrex import convert_detrex

__all__ = ["convert_detrex"]
