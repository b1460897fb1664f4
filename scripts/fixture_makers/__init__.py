"""Makers of the committed test models; independent of the package under test."""
