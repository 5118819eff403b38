"""`bnstat scan`: find the models of a store, check each, and make a record of it.

`walk` finds candidates by the names in folder listings. `scan` reads and checks them, on one of
the `engines`. `state` keeps the records, so that a later scan reads only what changed.
"""
