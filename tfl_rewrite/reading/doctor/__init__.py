"""Reads any file and says what will go wrong where; repairs are passes (:mod:`tfl_rewrite.passes.repair`)."""
