"""The quantum and key-distribution protocol: pure functions and state machines, no input or output of their own."""
