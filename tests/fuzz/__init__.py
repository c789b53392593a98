"""Fuzzing: every reader of what strangers wrote, fed with what nobody foresaw.

    python -m tests.fuzz --seconds 60     each harness for that long under atheris (the extra "fuzz"), coverage-guided
    python -m tests.fuzz --replay         what is in the corpus, once; needs no atheris, and is part of the tests
    python -m tests.fuzz --seeds          write the generated part of the corpus anew

A harness is a module in `harness` with ``check(data) -> bool``: whether the reader took the bytes for sound. It raises
only for a defect: an exception outside of the RefitAgentError family, something read in two ways, a result that an
independent reader contradicts. One that has ``mutate(data, random)`` gives sound structure to what atheris tries.
"""
