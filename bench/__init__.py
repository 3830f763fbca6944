"""Benchmarks: `python -m bench fanout|publish`. See docs/benchmarks.md."""
