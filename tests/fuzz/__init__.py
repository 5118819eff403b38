"""A mutation fuzzer for every format that bnstat reads.

    python -m tests.fuzz --minutes 60                  all formats
    python -m tests.fuzz --minutes 60 --format bundle  one of them
    python -m tests.fuzz --replay FOLDER               a saved finding again

It takes model files as seeds, damages them, and has a worker process load, read, check and export
each. The answer must be right or a `BnstatError`, within a limit of CPU time and 1 GB of
memory; anything else is a finding, which is cut down to what provokes it and saved. Damage goes
below checksums and lengths: those around a mutation are made right again.

    seeds      the files to start from; handmade, ports: those that are written by hand
    wire       protocol buffers, tables   } taken apart, mutated
    mutate     bytes, texts, JSON         } and put together again
    pickles    PyTorch's, safetensors     }
    recipes    which mutations each format gets, a module for each family of formats
    judge      what has to hold of an answer
    worker     judges in a process of its own, within limits
    campaign   cases, findings and their reduction

A case is made by its seed number alone, so that `--seed`, `--format` and `--case` make it again.
"""
