# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, binding=True, autotestdict=False, auto_pickle=False, freethreading_compatible=True
"""The compiled module: calls the C core on pointers that have been checked. Each part below has one subject.

The parts only find out whether everything is in order. If anything is not, :mod:`gdm._checks` looks again, and raises
an error with the right words or returns plain arrays (for a buffer that is not a NumPy array). The rules and their options
come from the table csrc/rules.def; the names, defaults and docstrings of their functions from :mod:`gdm.reference`.

No list comprehensions here: Cython 3.3 releases an item twice if there is no memory to add it to the list.
"""

include "_native/declarations.pxi"
include "_native/locks.pxi"
include "_native/arrays.pxi"
include "_native/options.pxi"
include "_native/functions.pxi"
include "_native/reductions.pxi"
include "_native/engine.pxi"
include "_native/array_update.pxi"
include "_native/optimizer.pxi"
include "_native/tensors.pxi"
include "_native/library.pxi"
