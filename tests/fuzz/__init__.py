"""A mutation fuzzer for every format that bnstat reads.

    python -m tests.fuzz --minutes 60                  all formats
    python -m tests.fuzz --minutes 60 --format bundle  one of them
    python -m tests.fuzz --replay FOLDER               a saved finding again

It damages model files ("seeds"), and a worker process loads, reads, checks and exports each result.
The output must be correct or a `BnstatError`, within limits of CPU time and 1 GB of memory.
Anything else is a finding, which is saved. Checksums and lengths around a mutation are corrected,
so that damage reaches the code behind those checks.

    seeds      the files to start from; handmade, ports: the files that are written by hand
    wire       protocol buffers and tables, parsed and written again
    mutate     mutations of bytes, texts, JSON and protocol buffers
    recipes    mutations of models, archives, pickles, HDF5 and tables
    judge      the conditions that outputs must meet
    worker     judges in a separate process, within limits
    campaign   cases and findings

A case depends on its seed number only, so `--seed`, `--format` and `--case` repeat it.
"""
