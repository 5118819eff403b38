"""Running a model: the only part of bnstat that executes what a file holds.

Whatever the model was saved as becomes one graph (`program`, made by `programs`), which is made
flat (`flatten`), in which every normalization is found (`sites`), to which the measuring is added
(`rewriting`), and which a session then runs (`runner`). A `Subject` is a model that is ready for
that.
"""
