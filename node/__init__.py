"""The volunteer's daemon: loads experts, announces them, serves them, and stays a good guest. Never imports
`client`."""
