"""Newcomers that fill from each other: the real fetcher, peers, seeder and announcer under a virtual clock.

    lines.py      how machines are connected: homes of 22 countries
    shares.py     who is to hold what
    machines.py   a simulated node: its disk, its lines, and the real code between them
    run.py        scenarios and what they came to
    limits.py     what no policy can beat
    timeline.py   how busy the lines were

`python -m shoal.simulations.seeding` prints the table of docs/SEEDING.md.
"""
