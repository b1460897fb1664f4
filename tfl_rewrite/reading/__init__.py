"""Reads models and says what is in them, what differs and what is wrong; changes nothing."""
