"""A grid on a Slurm cluster: checked and submitted, run in segments, looked after by a job that comes and goes."""
