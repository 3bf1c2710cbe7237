"""From a request to its answer, and from too many requests to BUSY.

Read in this order: `server` (a request's way), `admission` (whether, by work and bytes), `shares` (how much of a node
one peer may have), `fair_queue` and `batcher` with `batch_rows` (whose turn, and with whom in one kernel call),
`anchor` (experts from disk), `gate` (open, paused, draining), `self_check` (does this machine compute what the manifest
means).
"""
