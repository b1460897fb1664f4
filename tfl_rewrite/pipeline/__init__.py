"""A rewrite from file to file: passes, writing aside, judging, publishing."""
