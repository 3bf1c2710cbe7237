"""`python -m shoal.cli`: the same as the console script."""

from shoal.cli.main import main

main()
