"""Data only: defaults, link profiles and topologies."""
