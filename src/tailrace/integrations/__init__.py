"""Bridges to frameworks, each behind an extra of its own."""
