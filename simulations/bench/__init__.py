"""Benchmarks: they print machine, commit, shapes, median and spread; nothing here is a test."""
