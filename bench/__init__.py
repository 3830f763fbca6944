"""Benchmarks: `python -m bench <command>`. See docs/benchmarks.md."""
