"""The chain: blocks, transactions, state and the commit protocol; pure state machines without input or output."""
