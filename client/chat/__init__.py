"""What `shoal chat` is about, without a screen: dialogues, where answers come from, what is kept.

`backend` is the seam; `swarm_chat` and `openai_chat` answer; `plain_chat` is the chat in plain lines, `client/tui` the
one in screens.
"""
