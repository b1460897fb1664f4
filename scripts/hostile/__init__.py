"""Damaged and dishonest models, and what the package must do with them."""
