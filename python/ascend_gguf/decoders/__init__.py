"""Decoders of GGUF blocks: one module per family of types, one function per type.

A decoder says what a block's bytes mean, in values of :mod:`~ascend_gguf.codegen`;
its name is the type's in lower case, and :data:`ascend_gguf.ggml_types.BLOCK_TYPES` says which
module has it.  :mod:`~ascend_gguf.decoders.rows` compiles it for rows of blocks and a dtype.
"""
