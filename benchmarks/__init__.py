"""Benchmarks: each checks, then measures, then writes JSON (see README.md)."""
