"""Runs models: a sandboxed process, its script, its memory and its temporary files.

Like all of the judge's wing it imports errors, work and the wing itself, nothing else.
"""
