"""Emulated quantum optics: sources, channels, detectors and those who listen."""
