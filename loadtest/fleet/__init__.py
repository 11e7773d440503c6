"""Many real nodes: the launcher's interface, the fork server, and the fleet on this machine."""
