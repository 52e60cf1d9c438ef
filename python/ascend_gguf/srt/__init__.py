"""The patch to SGLang.

Each module sits at the path of the engine file it patches and uses that file's names.  Everything
enters through :mod:`ascend_gguf.srt.plugin`.
"""
