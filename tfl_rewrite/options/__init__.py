"""Options: each is stated once, as a field of a dataclass, and everything else about it is made from that."""
