"""Contracts: what a quorum of the validators decides, and the key policies that it sets (SEED_MAP S0-B3, SPEC 9).

`entries` are their entries in the state, `actions` what can be decided, `governance` how. Pure like the whole ledger.
"""
