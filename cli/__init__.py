"""The one command `shoal`; each verb is a few lines that call the packages."""
