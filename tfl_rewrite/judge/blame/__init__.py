"""Runs two models operator by operator and says where the error enters."""
