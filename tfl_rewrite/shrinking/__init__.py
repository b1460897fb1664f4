"""Finds the smallest file that keeps an error, by choosing an encoding for each constant."""
