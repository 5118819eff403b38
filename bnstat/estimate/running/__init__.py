"""Running a model: the only part of bnstat that executes what a file contains.

A model becomes a `Program`: a graph and all facts that running needs (`graph_files`,
`keras_files`, `traced`). The graph is made flat (`flat_graph`), and refused if it has an op that is
not allowed (`allowed_ops`). `normalizations` finds the normalizations, and adds ops that measure
their inputs. `Network` holds the results of these steps; a session runs it (`passes`).
"""
