"""Benchmarks that a sceptic can run again: `make bench-NAME`, or `python -m lab.bench.NAME`."""
