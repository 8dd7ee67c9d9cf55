"""Benchmarks of single parts, with pytest-benchmark. `conftest.py` has what they share."""
