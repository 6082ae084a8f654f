"""Tests that cannot run in several threads of one process at once, as ``make test-nogil`` runs all others."""

from __future__ import annotations

# By file, with the reason.
FILES = {
    "test_all_or_nothing.py": "traces the process, and interrupts it",
    "test_backend.py": "sets the backend and the instruction set of the process",
    "test_bench.py": "measures times",
    "test_c.py": "compiles programs in C",
    "test_cgroups.py": "starts programs",
    "test_cli.py": "starts programs",
    "test_concurrency.py": "starts threads itself, and changes how often they switch",
    "test_cross.py": "compiles programs in C",
    "test_demo.py": "trains for long",
    "test_disassembly.py": "takes the compiled module apart",
    "test_docs.py": "runs what the docs show",
    "test_embed.py": "builds projects",
    "test_free_threading.py": "starts threads itself, and changes how often they switch",
    "test_fp_mode.py": "compiles programs in C",
    "test_generated.py": "looks at the repository",
    "test_lifetime.py": "switches the garbage collector off, and counts which objects are alive",
    "test_lock.py": "alarms and forks",
    "test_memory_limits.py": "lets the allocations of the process fail",
    "test_mutants.py": "looks at the repository",
    "test_package.py": "looks at the repository",
    "test_processes.py": "forks, signals, and what happens at exit",
    "test_release.py": "looks at the repository",
    "test_threads.py": "sets the number of threads of the process",
    "test_user_code.py": "starts programs",
}
# By the name of a test.
TESTS = {
    "test_docstring_examples_of_schedules_run": "doctest takes the standard output of the process",
    "test_docstring_examples_run": "doctest takes the standard output of the process",
    "test_docstrings_have_every_option_and_run": "doctest takes the standard output of the process",
    "test_the_examples_of_its_docstring_run": "doctest takes the standard output of the process",
    "test_dlpack_gives_the_same_bits": "asks for a fixture while it runs, which patches the process",
}
# By a fixture that a test uses.
FIXTURES = {
    "by_hand": "compiles programs in C",
    "library": "compiles programs in C",
    "monkeypatch": "patches the process",
    "path": "all threads would write the same file",
    "saved": "all threads would write the same file",
    "tmp_path": "all threads would write the same files",
}


def why(item) -> str | None:
    """Why this test must run in one thread, or None."""
    file = item.path.name
    if file in FILES:
        return FILES[file]
    if file.startswith("test_c_"):
        return "compiles programs in C"
    if item.originalname in TESTS:
        return TESTS[item.originalname]
    return next((FIXTURES[x] for x in FIXTURES if x in getattr(item, "fixturenames", ())), None)
