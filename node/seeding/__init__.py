"""Peers as a source of weights: what a node gives to others, and how it takes from them.

    choke.py      who may take at a time, pure
    library.py    what this node can give, by hash
    seeder.py     answers FETCH with verified bytes, behind answers to clients
    standing.py   what we think of a peer as a source, pure
    taking.py     one piece from one peer, chunk by chunk
    connecting.py directly, or through libp2p
    view.py       who has what and who is about to, by the last look into the directory, pure
    first_copies.py how many pieces that nobody has are fetched from elsewhere at a time, pure
    last_pieces.py when the last ones are left for another source, pure
    orders.py     who comes first for a piece, by hashes that all nodes agree on
    peers.py      all peers as one source: whom to ask, and who fetches what nobody has

Knows channels and the directory by their seams only. ADR 0030, 0038, 0048.
"""
