"""Computation graphs: GraphDef, MetaGraphDef, frozen graphs."""
