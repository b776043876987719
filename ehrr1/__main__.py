"""`python -m ehrr1` is the command `ehrr1`."""

from ehrr1.cli import main

main()
