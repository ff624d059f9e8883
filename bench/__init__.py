"""Measurements: `python -m bench [NAME …] [--rounds N] [--quick]`. Results: docs/performance.md.
Captures to measure with: `python -m bench.captures KIND FILE`."""
