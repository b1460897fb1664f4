"""One list of passes over many files: planned, run in processes of their own, resumable, summed up."""
