"""`bnstat scan`: find the models of a store, check each model, and record the result.

`walk` finds candidates by the names in folder listings. `scan` reads and checks them, on one of
the `engines`. `record` keeps the records, so that a later scan reads only changed models.
"""
