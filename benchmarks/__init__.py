"""Benchmarks of memkit, each beside its limit in the same process. Run `python -m benchmarks --help`."""
