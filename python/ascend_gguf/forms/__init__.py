"""The forms weights take on a device, one module each; ``base`` has the whole contract."""

from ascend_gguf.forms.base import Form, Piece, Weight, allocated
from ascend_gguf.forms.blocks import Blocks
from ascend_gguf.forms.dense import Dense
from ascend_gguf.forms.grouped import GroupedInt4, GroupedPlanes
from ascend_gguf.forms.int4 import Int4
from ascend_gguf.forms.int8 import Int8, NearInt8
from ascend_gguf.forms.planes import Planes

__all__ = [
    "Blocks",
    "Dense",
    "Form",
    "GroupedInt4",
    "GroupedPlanes",
    "Int4",
    "Int8",
    "NearInt8",
    "Piece",
    "Planes",
    "Weight",
    "allocated",
]
