"""Running a model: the only part of bnstat that executes what a file contains.

A model becomes a `Program`: a graph and all facts that running needs (`graph_files`,
`keras_files`, `traced`). The graph is made flat (`flat_graph`) and refused if it has an op that is
not allowed (`allowed_ops`). The normalizations are found (`normalizations`), and ops that measure
their inputs are added (`measuring`). `Network` holds the results of these steps; a session runs it
(`passes`).
"""
