"""Peers as a source of weights: what a node gives to others, and how it takes from them.

    choke.py      who may take at a time, pure
    seeder.py     answers FETCH with verified bytes, behind answers to clients

Knows channels and the directory by their seams only. ADR 0030.
"""
