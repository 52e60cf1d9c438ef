"""The library's one error: which file, what is wrong with it, and what the user can do."""

from __future__ import annotations

import os

DOWNLOAD_AGAIN = "The file is damaged or incomplete: download it again."
CONVERT_AGAIN = "Convert the model again with a current llama.cpp."

# A hostile name may be as long as its file; a message stays one readable line.
_LONGEST = 200
# Longer: a problem may quote another library, and what is expected may be a list.
_LONGEST_SENTENCE = 2000


def shown(text: object, longest: int = _LONGEST) -> str:
    """Text from a file or another library, safe for a terminal or a log.

    One line, cut after ``longest`` characters.  Characters that are not printable (line ends,
    escape sequences, marks of the writing direction, lone surrogates) appear as Python escapes.
    """
    line = str(text)
    if len(line) > longest:
        line = line[:longest] + "..."
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)


class GGUFError(ValueError):
    """A GGUF file that cannot be read or used.

    ``str()`` is one line: ``FILE: tensor 'NAME': PROBLEM (found F, expected E). HINT``
    Every part but the problem may be missing; each is :func:`shown`.  All fields are plain strings,
    so the error can be pickled on its way out of a worker process.

    Args:
        problem: what is wrong, as a clause: no full stop.
        file: the file at fault.
        tensor: the tensor at fault (its GGUF name).
        key: the metadata key at fault.
        found: what the file holds.
        expected: what it should hold.
        hint: what the user can do, as a whole sentence.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str | os.PathLike[str] | None = None,
        tensor: str | None = None,
        key: str | None = None,
        found: object = None,
        expected: object = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.file = None if file is None else os.fspath(file)
        self.tensor = tensor
        self.key = key
        self.found = None if found is None else str(found)
        self.expected = None if expected is None else str(expected)
        self.hint = hint

    def __str__(self) -> str:
        where = []
        if self.file is not None:
            where.append(shown(self.file, len(self.file)))
        if self.tensor is not None:
            where.append(f"tensor '{shown(self.tensor)}'")
        if self.key is not None:
            where.append(f"metadata key '{shown(self.key)}'")

        facts = []
        if self.found is not None:
            facts.append(f"found {shown(self.found)}")
        if self.expected is not None:
            facts.append(f"expected {shown(self.expected, _LONGEST_SENTENCE)}")

        # A problem may quote another library's message of several lines.
        problem = " ".join(self.problem.splitlines())
        text = ": ".join([*where, shown(problem, _LONGEST_SENTENCE)])
        if facts:
            text += f" ({', '.join(facts)})"
        text += "."
        if self.hint is not None:
            text += f" {shown(self.hint, _LONGEST_SENTENCE)}"
        return text
