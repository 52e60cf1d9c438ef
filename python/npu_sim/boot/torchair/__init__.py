"""Stand-in for torchair, the graph compiler in torch_npu, which needs CANN's graph engine.

The engine decorates small functions with it while it is imported.  They run uncompiled here.
"""

from npu_sim.boot.missing import missing_in

missing_in(__name__)


class _Options:
    """A tree of options in which everything can be set."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        child = _Options()
        object.__setattr__(self, name, child)
        return child


class CompilerConfig(_Options):
    pass


def get_npu_backend(compiler_config=None, **options):
    return "eager"
