"""Checkpoints that any number of ranks, under any strategy, can resume from."""
