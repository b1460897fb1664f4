"""What every pass stands on: what a pass is and returns, and edits that keep a model sound."""
