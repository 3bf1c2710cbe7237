"""A whole swarm in one event loop under a virtual clock: the real node and client code, seeded faults, an oracle.

loop       an asyncio loop whose time jumps to the next timer and whose scheduling a seed decides
faults     what goes wrong, when and where: drawn from a seed as plain data
drafts     a drafter that is right as often as a seed says
world      nodes, client, network and directory of one run
injector   makes a plan of faults happen in a world
run        one seed from start to end: the answers, held against the oracle token by token
soak       many seeds, on all cores; crew: its processes; ledger: what they came to, and where a run was ended
"""
