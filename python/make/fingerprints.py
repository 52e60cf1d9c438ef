"""What a release of SGLang changes of the functions that are patched: ``make fingerprints``.

Compares a release, or the engine in a folder, with those that the patch knows
(``ascend_gguf/srt/fingerprints.json``).  ``--write`` adds it to them, once the tests pass with it,
and takes the fingerprints of the others again: after a change of what is patched that is all there
is to do.  Releases come from the package index, into the cache of :mod:`fetch`.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib import metadata
from pathlib import Path

from ascend_gguf.srt import fingerprints
from ascend_gguf.srt.models.repairs import engine_classes
from ascend_gguf.srt.plugin import targets
from fetch import FetchError, fetch


def folder_of(release: str) -> Path:
    """The ``srt`` of a release: the installed one, or one that is fetched."""
    if release == metadata.version("sglang"):
        return fingerprints.installed()
    (folder,) = fetch(f"sglang=={release}").glob("sglang/srt")
    return folder


def taken(folder: Path) -> dict[str, str | None]:
    """Of all functions, classes of models that are repaired, and their files, in a folder."""
    functions = [*targets(), *engine_classes()]
    files = sorted({(module, "") for module, _ in functions})
    found = fingerprints.fingerprints([*functions, *files], folder)
    return {fingerprints.key(target): fingerprint for target, fingerprint in found.items()}


def difference(found: dict[str, str | None], known: dict[str, str | None]) -> list[str]:
    """A line for each function that is not as known."""
    return [
        f"{target}: {'is not there' if fingerprint is None else 'changed'}"
        for target, fingerprint in found.items()
        if known.get(target) != fingerprint and not target.endswith(":")  # a file
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fingerprints", description=__doc__.split("\n")[0])
    parser.add_argument("release", nargs="?", help="by default the installed one")
    parser.add_argument("--folder", type=Path, help="the engine's sglang/srt, of a checkout")
    parser.add_argument("--write", action="store_true", help="add it to the known releases")
    asked = parser.parse_args()
    release = asked.release or metadata.version("sglang")
    try:
        found = taken(asked.folder or folder_of(release))
        releases = {name: taken(folder_of(name)) for name in fingerprints.known()}
    except FetchError as error:
        print(f"make fingerprints: {error}", file=sys.stderr)
        return 1
    for name, known in releases.items():
        lines = difference(found, known)
        functions = sum(not target.endswith(":") for target in found)
        print(f"SGLang {release} beside {name}: {len(lines)} of {functions} functions differ")
        print("".join(f"  {line}\n" for line in lines), end="")
    if asked.write:
        releases = dict(sorted({**releases, release: found}.items(), key=_numbers))
        fingerprints.KNOWN_FILE.write_text(json.dumps(releases, indent=1) + "\n")
        print(f"written: {', '.join(releases)}")
    return 0


def _numbers(entry: tuple[str, object]) -> list[int]:
    return [int(part) for part in entry[0].split(".") if part.isdigit()]


if __name__ == "__main__":
    sys.exit(main())
