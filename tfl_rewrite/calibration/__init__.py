"""Runs a float model on real inputs and sums up what its weights are multiplied with."""
