"""Checkpoints in, one result file a checkpoint out."""
