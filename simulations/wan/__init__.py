"""Networks for swarms on one machine: hosts in namespaces, joined by a relay that delays, drops and paces packets.

Where namespaces are not allowed, `shaped_channel` delays in the client's channel instead. Knows no nodes and no models.
"""
