"""GGUF models on the Hugging Face Hub: from a reference to local files.

References are the engine's: ``owner/repo``, ``owner/repo:QUANTIZATION`` and
``owner/repo/path/file.gguf``.  Each may begin with ``hf.co/``, or be the URL of a page of the Hub.
Files go to the Hub's cache, where the next start finds them without a network.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ascend_gguf.errors import GGUFError
from ascend_gguf.reader.joining import whole_name
from ascend_gguf.reader.locate import is_gguf_name, is_model_name, parse_shard_name

_REFERENCE = re.compile(
    r"(?P<repo>\w[\w.-]*/\w[\w.-]*)"
    r"(?::(?P<quantization>[^/:]+)|/(?P<file>.+\.gguf)|/tree/(?P<tree>[^/]+))?/?",
    re.IGNORECASE,
)
#: Prefix of a reference that was copied from the Hub's site, llama.cpp or Ollama.
_SITE = re.compile(r"(?:hf://|(?:https?://)?(?:www\.)?(?:hf\.co|huggingface\.co)/)", re.IGNORECASE)
#: Path of a file's page or download on the site.
_PAGE = re.compile(r"(?:blob|resolve|raw)/(?P<revision>[^/]+)/(?P<file>[^?#]+)")
_OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


class Reference(NamedTuple):
    """A model on the Hub: a repository and, if it holds several models, which one."""

    repo: str
    quantization: str | None = None
    file: str | None = None
    revision: str | None = None


def parse_reference(text: str) -> Reference | None:
    """``text`` as a reference; None if it can only be a path."""
    site = _SITE.match(text)
    if site is not None:
        text = re.split(r"[?#]", text[site.end() :])[0]
    match = _REFERENCE.fullmatch(text)
    if match is None or is_gguf_name(match["repo"]):
        return None
    file, revision = match["file"], match["tree"]
    page = _PAGE.fullmatch(file) if site is not None and file is not None else None
    if page is not None:
        file, revision = page["file"], page["revision"]
    return Reference(match["repo"], match["quantization"], file, revision)


def fetch_model(
    reference: Reference,
    revision: str | None = None,
    folder: str | None = None,
    *,
    required: bool = True,
) -> Path | None:
    """Download the model that ``reference`` names, with all its shards, unless they are cached.

    Args:
        revision: a branch, tag or commit of the repository, if the reference names none.
        folder: the folder for downloads; the Hub's cache if None.
        required: False for a bare ``owner/repo`` that may be a model in another format.

    Returns:
        The (first) file; None if the model is not GGUF and not required.

    Raises:
        GGUFError: no such repository or model, several models and none named, or no network.
    """
    revision = reference.revision or revision
    undecided = not required and reference.quantization is None and reference.file is None
    try:
        files = list_files(reference.repo, revision, folder)
    except GGUFError:
        if undecided:
            return None
        raise
    if undecided and not is_gguf_repository(files):
        return None
    names = find_files(reference, files)
    return [_fetch(reference.repo, name, revision, folder) for name in names][0]


def is_gguf_repository(files: Iterable[str]) -> bool:
    """True if the repository has GGUF weights and no others."""
    names = [name.lower() for name in files]
    return any(map(is_model_name, names)) and not any(n.endswith(_OTHER_WEIGHTS) for n in names)


def find_files(reference: Reference, files: Iterable[str]) -> list[str]:
    """The files of the model that ``reference`` names, in order, among those of its repository.

    Raises:
        GGUFError: there is none, or several.
    """
    files = set(files)
    models: dict[str, list[str]] = {}
    for name in sorted(files):
        if is_model_name(name):
            shards = _shards(name)
            models.setdefault(shards[0], shards)
    if reference.file is not None:
        wanted = [_shards(reference.file)[0]] if reference.file in files else []
    elif reference.quantization is not None:
        wanted = [name for name in models if _is_of(name, reference.quantization)]
    else:
        wanted = list(models)
    if len(wanted) != 1:
        listing = wanted or list(models)
        hint = f"Name one: {reference.repo}:QUANTIZATION, or {reference.repo}/FILE.gguf."
        pieces = sorted(name for name in files if whole_name(PurePosixPath(name).name))
        if not listing:
            hint = "Pass a repository of GGUF files."
        if pieces and not wanted:
            listing = listing or pieces
            hint = "Some are cut for uploading: download the pieces of one and join them (`cat`)."
        raise GGUFError(
            "the repository holds several such models" if wanted else "no such GGUF model",
            file=_text(reference),
            found=", ".join(listing[:30]) or "no .gguf file",
            hint=hint,
        )
    shards = models.get(wanted[0], [wanted[0]])
    if not files.issuperset(shards):
        raise GGUFError(
            f"the model is split into {len(shards)} files and some are missing",
            file=_text(reference),
            found=f"no {', '.join(sorted(set(shards) - files)[:8])}",
            hint="Tell the repository's owner, or use another quantization.",
        )
    return shards


def _shards(name: str) -> list[str]:
    shard = parse_shard_name(name)
    if shard is None:
        return [name]
    return [str(shard._replace(number=number)) for number in range(1, shard.count + 1)]


def _is_of(name: str, quantization: str) -> bool:
    shard = parse_shard_name(name)
    stem = PurePosixPath(shard.model if shard else name[: -len(".gguf")]).name
    return re.search(rf"(^|[-._]){re.escape(quantization)}$", stem, re.IGNORECASE) is not None


def _text(reference: Reference) -> str:
    quantization, file = reference.quantization, reference.file
    return reference.repo + (f":{quantization}" if quantization else f"/{file}" if file else "")


def list_files(repo: str, revision: str | None, folder: str | None) -> list[str]:
    """Names of a repository's files, in the cache if there is no network.

    Raises:
        GGUFError: no such repository, or it cannot be reached.
    """
    from huggingface_hub import HfApi, errors, snapshot_download

    try:
        about = HfApi().model_info(repo, revision=revision)
        return [sibling.rfilename for sibling in about.siblings or ()]
    except errors.RepositoryNotFoundError:
        raise GGUFError(
            "no such repository on the Hugging Face Hub, or it is private or gated",
            file=repo,
            hint="Check the name; for a private or gated repository, log in with `hf auth login`.",
        ) from None
    except errors.RevisionNotFoundError:
        raise GGUFError("the repository has no such revision", file=repo, found=revision) from None
    except Exception as error:  # from the HTTP library that the Hub's client uses
        try:
            kept = snapshot_download(
                repo, revision=revision, cache_dir=folder, local_files_only=True
            )
        except Exception:
            raise unreachable(repo, error) from error
        return [path.relative_to(kept).as_posix() for path in Path(kept).rglob("*")]


def _fetch(repo: str, name: str, revision: str | None, folder: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, name, revision=revision, cache_dir=folder))
    except OSError as error:
        if error.errno is None:
            raise unreachable(f"{repo}/{name}", error) from error
        raise GGUFError(
            f"the file cannot be stored: {error.strerror}",
            file=f"{repo}/{name}",
            hint="Free disk space, or set --download-dir to a folder with enough space.",
        ) from error
    except Exception as error:
        raise unreachable(f"{repo}/{name}", error) from error


def unreachable(what: str, error: Exception) -> GGUFError:
    """The error for what an HTTP library raised, for the caller to raise."""
    return GGUFError(
        f"the Hugging Face Hub cannot be reached: {str(error)[:200] or type(error).__name__}",
        file=what,
        hint="Check the network (HF_ENDPOINT sets a mirror), or pass the path of a file.",
    )
