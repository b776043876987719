"""The command `ehrr1` from a checkout: `python run.py stage=rl model=8b`. See ehrr1/cli.py."""

from ehrr1.__main__ import main

if __name__ == "__main__":
    main()
