"""The command `ehrr1`, also as `python -m ehrr1`."""

from ehrr1.entry import run_command


def main() -> None:
    """Run the command `ehrr1` (`cli.py`)."""
    run_command("ehrr1.cli", "; the same command goes on")


def sweep() -> None:
    """Run the command `ehrr1-sweep` (`sweep_cli.py`)."""
    run_command("ehrr1.sweep_cli", "; runs that have begun go on")


if __name__ == "__main__":
    main()
