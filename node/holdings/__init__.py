"""What a node holds, and what it should hold for the swarm's sake.

Read in this order: `assignment` (what the owner says), `survey` (what the swarm has), `placement` (what to take: pure),
`joining` (a newcomer's choice), `takeover` (who mends what is rare: pure), `healer` and `keeper` (mending it),
`tiers` (what of it is in memory, what on disk),
`tending` (all of it while the node runs), `coverage` (what `shoal coverage` says).
"""
