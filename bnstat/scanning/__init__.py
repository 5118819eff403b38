"""`bnstat scan`: `walk` finds candidates, `scan` checks them, `record` keeps the results."""
