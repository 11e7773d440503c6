"""Scenarios: what a run consists of, as TOML files and frozen records."""
