from torchair import CompilerConfig  # noqa: F401
