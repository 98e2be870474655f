"""``python -m pscl_hpc.cli`` is the console command."""

from pscl_hpc.cli.main import run

run()
