"""Judges a rewritten model by running it and the original, each in a process of its own.

Shares no code with what rewrites: it sees two files, through the runtime only.
"""
