"""Where a token begins and ends: the public client library (`from shoal.client import Swarm`)."""
