"""Measurements: `python -m bench [NAME …] [--rounds N] [--quick]`. Results: docs/performance.md."""
