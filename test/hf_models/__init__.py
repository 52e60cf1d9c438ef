"""Small models of any architecture: transformers' own classes, converted as llama.cpp converts.

transformers makes a random model of an architecture and names its weights as published checkpoints
do.  :func:`write_model` converts those to GGUF, quantized, and gives transformers the same numbers
back: the answer that a server of the file must give.  What conversion does to tensors and metadata
is written here anew from llama.cpp's converter (``convert_hf_to_gguf.py`` and ``conversion/``),
knowing nothing of the project's table.
"""

from hf_models.conversion import pairs_from_halves
from hf_models.table import ONE_STAGE, TINY
from hf_models.tiny import Tiny
from hf_models.writing import Written, write_model

__all__ = ["ONE_STAGE", "TINY", "Tiny", "Written", "pairs_from_halves", "write_model"]
