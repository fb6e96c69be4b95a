"""Benchmarks: `python -m bench --help`. How each number is made: README.md."""
