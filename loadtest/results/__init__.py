"""The result of a load test on disk: one directory per run, written as the run goes, readable at any moment."""
