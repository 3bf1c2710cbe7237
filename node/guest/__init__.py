"""A node is a guest: when it may work, and how much it may take.

Read in this order: `schedule`, `sensors` and `other_programs` (what the machine says), `decision` (may it work now:
pure), `guest` (asks them in turn and pauses the node), `pause_file` and `transfer_meter` (what outlives the process,
through `durable_file`).
"""
