"""Open-loop clients: key requests, ledger records and messages at intended times."""
