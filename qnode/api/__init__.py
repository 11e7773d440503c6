"""The daemon's doors for applications and operators."""
