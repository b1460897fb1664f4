"""Finds the smallest file that keeps an error, by choosing an encoding or a grid for each constant."""
