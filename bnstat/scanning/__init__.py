"""Every model in a whole store: found, checked, and told of in a line each.

A walk lists folders and groups files by their names, without opening any (`walk`); jobs open what
it found, here or on other machines, and make a plain record of each (`job`, `engines`); a state
file keeps the records, so that only what changed is opened again (`state`). `scan` ties them.
"""
