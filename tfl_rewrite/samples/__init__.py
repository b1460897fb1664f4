"""Inputs for both models: made, or read from .npz files, pictures and sound."""
