"""The command `ehrr1-sweep` from a checkout: `python sweep.py stage=adapt seed=0,1`.

See ehrr1/sweep_cli.py.
"""

from ehrr1.__main__ import sweep

if __name__ == "__main__":
    sweep()
