"""Run the command `ehrr1` as `python -m ehrr1`."""

from ehrr1.cli import main

main()
