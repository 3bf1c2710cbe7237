"""Newcomers that fill from each other: the real fetcher, peers, seeder and announcer under a virtual clock.

    machines.py   a simulated node: its disk, its uplink, and the real code between them
    run.py        scenarios and what they came to

`python -m shoal.simulations.seeding` prints the table of docs/SIMULATE.md.
"""
