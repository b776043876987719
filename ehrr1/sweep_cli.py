"""Many runs: grids and chains of run.py, on SLURM or on this machine.

python sweep.py OVERRIDES... [launcher=local|slurm|slurm_8gpu] [name=NAME] [--dry-run]
                [--config-dir DIR]
python sweep.py status  NAME [output_root=DIR] [--json] [--watch]   state, step, speed of every run
python sweep.py logs    NAME RUN                                    what a run printed
python sweep.py resume  NAME [RUN...]                               what is missing or has failed
python sweep.py cancel  NAME [RUN...]
python sweep.py compare NAME [metric=NAME] [--json]                 scores, seeds together
python sweep.py compare NAME RUN RUN                                settings that differ
python sweep.py clean   NAME                                        forget a sweep; its runs stay

OVERRIDES are Hydra's: `stage=rl model=1.7b,8b seed=1,2,3` is a grid of six runs,
`stage=adapt,reason,rl,eval` a chain of four stages (`stage=curriculum`: all of them), and both
together a chain that branches where the grid does. A run that is finished is used, not run again.
The command returns at once.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("HYDRA_FULL_ERROR", "1")

from ehrr1.errors import UserError, machine_fault


def main() -> None:
    """Run the command with the arguments of this process."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Do what the arguments ask, and return the exit code."""
    from ehrr1.sweeps import cli

    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    try:
        return cli.run(arguments)
    except BrokenPipeError:  # the command's entry decides
        raise
    except UserError as error:
        message = str(error)
    except Exception as error:
        if (fault := machine_fault(error)) is None:
            raise
        message = fault
    print(f"{Path(sys.argv[0]).name}: " + " ".join(message.split()), file=sys.stderr)
    return 2
