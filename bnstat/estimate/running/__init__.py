"""Running a model: the only part of bnstat that executes what a file contains.

A model becomes a `Program`: a graph with everything that is needed to run it (`graph_files`,
`keras_files`, `traced`). The graph is made flat (`flat_graph`) and refused if it has an op that is
not allowed (`allowed_ops`). The normalizations in it are found (`normalizations`), ops that measure
them are added (`measuring`), and a session runs it (`runner`). `Network` holds all of that.
"""
