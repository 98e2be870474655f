"""Runs as jobs, on this machine or on Slurm, through submitit.

Nothing is imported here: the process that watches a local job (:mod:`pscl_hpc.launch.local`) stays small.
"""
