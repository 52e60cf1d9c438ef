"""Spoils GGUF files in every way, and looks for what is not said in one clear line.

``python -m fuzz --seconds 60`` (``make fuzz SECONDS=60``)::

    seeds.py       valid files: every architecture, block type and kind of tokenizer
    container.py   a file as parts, and parts as a file, true or not
    mutations.py   parts and bytes spoiled
    check.py       all that happens to a file until its weights are in place
    runner.py      in processes whose end, time and memory are watched
"""
