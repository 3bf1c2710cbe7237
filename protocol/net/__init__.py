"""The only IO of the wire: channels to peers (`direct`, `libp2p`, `memory`) and the directory of who holds what."""
