"""Rewrites of a model, one file a pass; :mod:`tfl_rewrite.passes.catalog` lists them."""
