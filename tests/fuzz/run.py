"""Runs the fuzz targets from their corpora: libFuzzer for the C core, Atheris for Python.

    run.py [--runs N] [TARGET ...]    N inputs for each target in C, a hundredth for those in Python, which are slower
    run.py --input FILE TARGET        one input again, such as one that was found
    run.py --merge [TARGET ...]       the corpora again: the fewest inputs of theirs and of the runs' with all coverage
    run.py --coverage                 which lines of the C core the corpora reach

What is built and found lies in out/fuzz; the corpora are archives in tests/fuzz/corpus.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
OUT = ROOT / "out/fuzz"
CORPUS = HERE / "corpus"
IN_C = ["functions", "plan"]
IN_PYTHON = ["arrays", "checkpoint", "schedules", "states"]
LONGEST = {"functions": 512, "plan": 1024, "arrays": 256, "checkpoint": 1024, "schedules": 512, "states": 512}  # bytes

# The core with small blocks, tiles and windows, and with threads for small buffers. So inputs of some hundred elements
# take all ways through it. What is promised does not depend on these numbers.
SMALLER = {
    "core.h": [
        ("BLOCK = 4096", "BLOCK = 64"),
        ("ALIGNING = 2048", "ALIGNING = 48"),
        ("SCALE_BLOCK = 128", "SCALE_BLOCK = 16"),
    ],
    "pool.c": [("AWAKE (512 << 10)", "AWAKE (1 << 10)"), ("ASLEEP (4 << 20)", "ASLEEP (2 << 10)")],
    "reduce.c": [("WINDOW = 1024", "WINDOW = 8")],
    "tiles.c": [("TILE = 2048", "TILE = 256")],
    "trust.c": [("WINDOW = 512", "WINDOW = 4")],
}
COMMAND = ["clang", "-std=gnu11", "-g1", "-O2", "-fno-omit-frame-pointer", "-pthread"]
COMMAND += ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
ADDRESS = ["-fsanitize=address"]
UNDEFINED = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]
# Functions of the targets that stand in for the core's and the C library's.
WRAPPED = {"functions": ["gdm_active_isa"], "plan": ["gdm_active_isa", "calloc", "realloc"]}
PROFILED = ["-fprofile-instr-generate", "-fcoverage-mapping"]
# A leak is looked for after each input that allocates more than it frees.
OPTIONS = ["-timeout=20", "-rss_limit_mb=4096", "-print_final_stats=1", "-verbosity=0"]
# Twice as fast, and as good on a corpus that has grown: all inputs of it are tried equally often; it is read once.
OPTIONS += ["-entropic=0", "-reload=0"]


def sanitizers(source: Path) -> list[str]:
    """How a file of the core is instrumented."""
    if source.parent.name == "isa":
        # The checks of undefined behaviour keep loops from being vectorised. So one instruction set has them, and the
        # others are what users run. That a kernel is called is coverage enough.
        kind = UNDEFINED if source.stem == "baseline" else ADDRESS
        return [*kind, "-fsanitize-coverage=func,inline-8bit-counters,pc-table"]
    # The ways through the pool depend on time: they would make inputs interesting that are not.
    return UNDEFINED if source.stem == "pool" else [*UNDEFINED, "-fsanitize=fuzzer-no-link"]


def copy_core(folder: Path) -> list[Path]:
    """A copy of the core with smaller numbers; files that have not changed keep their time."""
    for source in sorted((ROOT / "csrc").rglob("*.*")):
        text, copy = source.read_text(), folder / source.relative_to(ROOT / "csrc")
        for old, new in SMALLER.get(source.name, []):
            if text.count(old) != 1:
                sys.exit(f"{source} has {old!r} {text.count(old)} times; SMALLER in {__file__} must be changed")
            text = text.replace(old, new)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.exists() or copy.read_text() != text:
            copy.write_text(text)
    return [*sorted(folder.glob("*.c")), *sorted(folder.glob("isa/*.c"))]


def build(targets: list[str], *, profiled: bool = False) -> dict[str, Path]:
    """The programs of some targets in C. With `profiled` they count which lines run, and have no sanitizers."""
    folder = OUT / ("profiled" if profiled else "sanitized")
    sources = copy_core(folder / "csrc")
    includes = ["-I", str(ROOT / "include"), "-I", str(folder / "csrc")]
    headers = [path for path in folder.rglob("*.*") if path.suffix in (".h", ".inc", ".def")]
    of_core = max(path.stat().st_mtime for path in [*headers, *(ROOT / "include").rglob("*.h")])
    of_targets = max(of_core, *(path.stat().st_mtime for path in HERE.glob("*.h")))

    def compile_one(source: Path) -> Path:
        made, is_target = folder / f"{source.parent.name}-{source.stem}.o", source.parent == HERE
        newest = max(of_targets if is_target else of_core, source.stat().st_mtime)
        if not made.exists() or made.stat().st_mtime < newest:
            kind = [*ADDRESS, "-fsanitize=fuzzer"] if is_target else sanitizers(source)
            subprocess.run(
                [*COMMAND, *(PROFILED if profiled else kind), *includes, "-c", source, "-o", made], check=True
            )
        return made

    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        core = list(pool.map(compile_one, sources))
        own = dict(zip(targets, pool.map(compile_one, [HERE / f"{target}.c" for target in targets]), strict=True))
    for target in targets:
        kind = [*PROFILED, "-fsanitize=fuzzer"] if profiled else [*UNDEFINED, "-fsanitize=fuzzer"]
        wrapped = [f"-Wl,--wrap={name}" for name in WRAPPED[target]]
        subprocess.run([*COMMAND, *kind, own[target], *core, "-lm", *wrapped, "-o", folder / target], check=True)
    return {target: folder / target for target in targets}


def has_libfuzzer() -> bool:
    """Whether there is a Clang that can link with libFuzzer and the sanitizers."""
    program = "int LLVMFuzzerTestOneInput(const char *data, long size) { return !data && size; }"
    command = ["clang", *UNDEFINED, "-fsanitize=fuzzer", "-x", "c", "-", "-o", os.devnull]
    return (
        bool(shutil.which("clang"))
        and not subprocess.run(command, input=program.encode(), capture_output=True).returncode
    )


def unpack(target: str) -> Path:
    """The corpus of a target, as a folder of files."""
    folder = OUT / "corpus" / target
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if (CORPUS / f"{target}.zip").exists():
        with zipfile.ZipFile(CORPUS / f"{target}.zip") as archive:
            archive.extractall(folder)
    return folder


def pack(target: str, folder: Path) -> None:
    """Replaces the corpus of a target. The same files make the same archive."""
    CORPUS.mkdir(exist_ok=True)
    with zipfile.ZipFile(CORPUS / f"{target}.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for i, data in enumerate(sorted({path.read_bytes() for path in folder.iterdir()})):
            archive.writestr(zipfile.ZipInfo(f"{i:04}"), data, zipfile.ZIP_DEFLATED)


def command_of(target: str, programs: dict[str, Path]) -> list[str]:
    program = [str(programs[target])] if target in IN_C else [sys.executable, str(HERE / f"{target}.py")]
    return [*program, f"-max_len={LONGEST[target]}"]


def run(target: str, command: list[str], runs: int) -> bool:
    """Runs a target from its corpus and what earlier runs have found; whether it has found nothing bad."""
    new, found, log = OUT / "new" / target, OUT / "found", OUT / f"{target}.log"
    new.mkdir(parents=True, exist_ok=True)
    found.mkdir(exist_ok=True)
    begin = time.monotonic()
    line = [*command, *OPTIONS, f"-runs={runs}", f"-artifact_prefix={found}/{target}-", str(new), str(unpack(target))]
    with log.open("w") as output:
        failed = subprocess.run(line, stdout=output, stderr=subprocess.STDOUT).returncode
    seconds = time.monotonic() - begin
    text = log.read_text(errors="replace")
    executed = next((int(x.split()[-1]) for x in text.splitlines() if x.startswith("stat::number_of_executed")), 0)
    print(f"{target}: {executed:,} inputs in {seconds:.0f} s, {'FAILED' if failed else 'nothing found'}", flush=True)
    if failed:
        print(text[-6000:], f"\nthe whole report is in {log}, the input in {found}", sep="\n")
    return not failed


def merge(target: str, command: list[str]) -> None:
    merged = OUT / "merged" / target
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir(parents=True)
    new = OUT / "new" / target
    new.mkdir(parents=True, exist_ok=True)
    # That a line runs counts, and not how often: else there are ten times as many inputs.
    options = ["-merge=1", "-use_counters=0", "-verbosity=0"]
    subprocess.run([*command, *options, merged, unpack(target), new], check=True, stderr=subprocess.DEVNULL)
    pack(target, merged)
    print(f"{target}: {len(list(merged.iterdir()))} inputs, {(CORPUS / f'{target}.zip').stat().st_size:,} bytes")


def coverage() -> None:
    """Prints, for each file of the core, how much of it the corpora reach."""
    programs, profiles = build(IN_C, profiled=True), []
    for target, program in programs.items():
        profiles.append(OUT / f"{target}.profraw")
        env = {**os.environ, "LLVM_PROFILE_FILE": str(profiles[-1])}
        subprocess.run([program, "-runs=0", "-verbosity=0", unpack(target)], check=True, env=env, capture_output=True)
    tools = Path(shutil.which("clang") or "").resolve().parent
    subprocess.run([tools / "llvm-profdata", "merge", *profiles, "-o", OUT / "profile"], check=True)
    first, *others = programs.values()
    objects = [text for program in others for text in ("-object", str(program))]
    ignored = "-ignore-filename-regex=tests/fuzz|isa/avx512|/neon"
    subprocess.run(
        [tools / "llvm-cov", "report", first, *objects, f"-instr-profile={OUT / 'profile'}", ignored], check=True
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", metavar="TARGET", nargs="*", choices=[[], *IN_C, *IN_PYTHON], help="default: all")
    parser.add_argument("--runs", type=int, default=200_000)
    parser.add_argument("--input", type=Path)
    parser.add_argument("--merge", action="store_true")
    parser.add_argument("--coverage", action="store_true")
    args = parser.parse_args()
    targets = args.targets or [*IN_C, *IN_PYTHON]
    if not has_libfuzzer():
        print("NOT TESTED: the C core with inputs that a fuzzer makes; needs clang and its libclang-rt")
        targets = [target for target in targets if target not in IN_C]
    if not importlib.util.find_spec("atheris"):
        print("NOT TESTED: the readers of states with inputs that a fuzzer makes; needs atheris, for x86-64")
        targets = [target for target in targets if target not in IN_PYTHON]
    if args.coverage:
        coverage()
        return 0
    programs = build([target for target in targets if target in IN_C])
    commands = {target: command_of(target, programs) for target in targets}
    if args.input:
        return max(subprocess.run([*command, args.input]).returncode for command in commands.values())
    if args.merge:
        for target, command in commands.items():
            merge(target, command)
        return 0
    failed = [
        target
        for target, command in commands.items()
        if not run(target, command, args.runs // (1 if target in IN_C else 100))
    ]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
