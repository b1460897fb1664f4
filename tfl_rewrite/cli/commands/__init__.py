"""The subcommands: the rows of their options, and one small function each."""
