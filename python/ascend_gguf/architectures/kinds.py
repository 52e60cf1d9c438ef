"""GGUF files that do not hold a language model: each is refused by name.

Names: ``GGUFType`` and ``MODEL_ARCH_NAMES`` of ``gguf/constants.py``; for other kinds of models the
names that ComfyUI-GGUF, stable-diffusion.cpp and others write.
"""

from __future__ import annotations

from ascend_gguf.errors import GGUFError
from ascend_gguf.reader import GGUFFile

_MODEL_FILE = "Pass the file of the language model itself."

#: ``general.type`` or ``general.architecture`` of files beside models: what it is, what to do.
_BESIDE_MODELS = {
    "adapter": (
        "a LoRA adapter",
        "Merge it into its model with llama-export-lora, or on an NPU pass the original adapter "
        "with --lora-paths.",
    ),
    "imatrix": ("an importance matrix, which llama-quantize reads", _MODEL_FILE),
    "mmproj": ("the vision or audio encoder of a model (mmproj)", _MODEL_FILE),
    "clip": ("the vision or audio encoder of a model (mmproj)", _MODEL_FILE),
    "controlvector": ("a control vector", _MODEL_FILE),
    "eagle3": ("an EAGLE 3 draft model, which runs beside another model", _MODEL_FILE),
    "dflash": ("a DFlash draft model, which runs beside another model", _MODEL_FILE),
    "gemma4-assistant": ("a Gemma 4 draft model, which runs beside another model", _MODEL_FILE),
}

_IMAGES = "a model that generates images or videos"

#: What models of other kinds are: their ``general.architecture``.
_KINDS = {
    _IMAGES: "flux flux2 sd sd1 sd2 sd3 sdxl aura hidream cosmos ltxv hyvid hunyuan_video wan "
    "qwen_image lumina2 pig chroma cogvideox mochi z_image kandinsky5 omnigen2",
    "a model that generates speech": "wavtokenizer-dec qwen3tts pockettts kokoro parler-tts dia "
    "vits orpheus bark outetts snac",
    "a model that transcribes speech": "whisper parakeet moonshine",
    "an encoder, which gives embeddings, not text": "modern-bert nomic-bert nomic-bert-moe "
    "neo-bert eurobert jina-bert-v2 jina-bert-v3 t5encoder",
    "an encoder-decoder model": "t5",
    "a recurrent or hybrid model": "mamba jamba plamo2 rwkv6 rwkv6qwen2 rwkv7 arwkv7",
    "a diffusion language model": "dream llada llada-moe rnd1",
}
_OTHER_MODELS = {name: kind for kind, names in _KINDS.items() for name in names.split()}

# Of image models in files without an architecture.
_IMAGE_TENSORS = ("model.diffusion_model.", "first_stage_model.", "double_blocks.", "joint_blocks.")


def kind_of(file: GGUFFile) -> str | None:
    """What a file holds if it is a known kind of model that is not supported; else None."""
    name = file.metadata.get("general.architecture")
    return _OTHER_MODELS.get(name) if isinstance(name, str) else None


def check_kind(file: GGUFFile) -> None:
    """Refuse a file that is not a language model, by its metadata.

    Raises:
        GGUFError: says what the file is.
    """
    for key in ("general.type", "general.architecture"):
        value = file.metadata.get(key)
        if isinstance(value, str) and value in _BESIDE_MODELS:
            what, hint = _BESIDE_MODELS[value]
            raise file.error(
                f"the file holds {what}, not a language model", key, found=value, hint=hint
            )
    if "general.architecture" not in file.metadata:
        if any(name.startswith(_IMAGE_TENSORS) for name in file.tensors):
            problem = f"the file holds {_IMAGES}, not a language model"
            raise GGUFError(problem, file=file.path, hint=_MODEL_FILE)


def check_weights(file: GGUFFile) -> None:
    """Refuse a file without weights.

    Raises:
        GGUFError: says what the file holds.
    """
    if not file.tensors:
        what = "a vocabulary" if "tokenizer.ggml.tokens" in file.metadata else "metadata"
        problem = f"the file holds {what} and no weights"
        raise GGUFError(problem, file=file.path, hint=_MODEL_FILE)
