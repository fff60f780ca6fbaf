"""The command line before anything heavy: it parses, and answers --help, without torch.

``import clipself_d2`` registers everything with Detectron2, which takes seconds; that is why what
reads a command line lies beside the package and imports the standard library alone.
"""
