"""Reads GGUF files: metadata as Python values, tensors as views into the mapped file.

The way of a file through this folder::

    locate.py        the path given -> the files of one model (directory, split set)
    mapping.py       a file -> its bytes in memory
    cursor.py        checked, sequential reading of those bytes
    shard.py         one file: header, then
      metadata.py      keys and values
      tensor_table.py  tensor names, shapes, types, places
    tensor.py        one tensor: views of its blocks or values
    model_file.py    the files of one model as one (open_gguf)

gguf.GGUFReader makes a numpy array of every metadata element: minutes for a large vocabulary.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from ascend_gguf.reader.model_file import GGUFFile, open_gguf
from ascend_gguf.reader.tensor import GGUFTensor

__all__ = ["GGUFFile", "GGUFTensor", "open_gguf"]
