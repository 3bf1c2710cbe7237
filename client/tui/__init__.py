"""`shoal chat` in a terminal: seven screens over a `ChatBackend` and, if there is one, a swarm's read-only view.

Stands on the public client API and on protocol events; knows no node, no simulation and no socket. One screen a file;
what the screens show is worked out in files without Textual (`event_book`, `heat_cells`, `bars`), so that it is tested
without a screen. Start at `app.py`.
"""
