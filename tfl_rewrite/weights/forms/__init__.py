"""Forms that a constant may be stored in beside a single integer tensor."""
