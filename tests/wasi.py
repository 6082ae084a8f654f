"""Runs a WebAssembly program for WASI in wasmtime: ``python wasi.py PROGRAM ARGUMENTS``."""

import os
import sys

import wasmtime

engine = wasmtime.Engine()
linker = wasmtime.Linker(engine)
linker.define_wasi()
store = wasmtime.Store(engine)
config = wasmtime.WasiConfig()
config.argv = sys.argv[1:]
config.env = [(name, os.environ[name]) for name in os.environ if name.startswith("GDM_")]
config.inherit_stdout()
config.inherit_stderr()
store.set_wasi(config)
program = linker.instantiate(store, wasmtime.Module.from_file(engine, sys.argv[1]))
try:
    program.exports(store)["_start"](store)
except wasmtime.ExitTrap as exit_:
    sys.exit(exit_.code)
