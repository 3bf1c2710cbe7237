"""Bad days for real processes: what is done to a swarm while it answers, and what its answer must be all the same."""
