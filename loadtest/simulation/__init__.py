"""Whole clusters in virtual time under a seed: the daemon's own cores, a hostile network, disks that crash."""
