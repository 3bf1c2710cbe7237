"""Swarms on one machine, and what they are measured with."""
