# The library: backends, instruction sets, threads, and the table of rules.

def set_reference(bint whether):
    """Sets whether everything uses the rules in NumPy."""
    set_flag(&use_reference, whether)


def isa():
    """The instruction set in use; None if GDM_ISA names one that is unknown or unsupported."""
    cdef const char *name = gdm_isa()
    return None if name == NULL else name.decode()


def available_isas():
    """The instruction sets that this machine can run, best first."""
    cdef size_t i = 0
    names = []
    while gdm_available_isa(i) != NULL:
        names.append(gdm_available_isa(i).decode())
        i += 1
    return names


def set_isa(str name):
    """Uses this instruction set from now on. Returns whether this machine can run it."""
    return gdm_set_isa(name.encode()) == OK


def get_num_threads():
    """How many threads a step may use."""
    return gdm_get_num_threads()


def set_num_threads(int n):
    """Sets how many threads a step may use. Returns whether the number is allowed."""
    return gdm_set_num_threads(n) == OK


def build_info():
    """How this module was built."""
    return {"version": gdm_version().decode(), "compiler": GDM_COMPILER.decode(), "flags": GDM_FLAGS.decode()}


def rules():
    """The table of rules (csrc/rules.def), for tests and benchmarks to enumerate.

    For each rule: ``states``, a dict from the name of a state to the option that needs it, or None; ``squares``, the
    states that are never negative; ``work``, those that hold something during a step only; ``scalars``, a dict from the
    name of a scalar to its initial value; and ``options``, a dict from the name of an option to its kind.
    """
    kinds = {not_negative: "not_negative", below_one: "below_one", up_to_one: "up_to_one", flag: "flag", form: "form",
             factors: "factors", count: "count", betas: "betas", three_betas: "three_betas", etas: "etas",
             step_sizes: "step_sizes", phase: "phase"}
    cdef int i, k
    cdef double[MAX_SCALARS] initial
    table = {}
    for i in range(RULES):
        states, squares, works, scalars, options = {}, [], [], {}, {}
        gdm_rules[i].begin(initial)
        for k in range(gdm_rules[i].states):
            needs = gdm_rules[i].state[k].option
            states[gdm_rules[i].state[k].name.decode()] = None if needs == NULL else needs.decode()
            if gdm_rules[i].state[k].kind == square:
                squares.append(gdm_rules[i].state[k].name.decode())
            if gdm_rules[i].state[k].kind == work:
                works.append(gdm_rules[i].state[k].name.decode())
        k = 0
        while gdm_rules[i].options[k].name != NULL:
            name = gdm_rules[i].options[k].name.decode()
            if gdm_rules[i].options[k].kind == scalar:
                scalars[name] = initial[len(scalars)]
            else:
                options[name] = kinds[gdm_rules[i].options[k].kind]
            k += 1
        table[gdm_rules[i].name.decode()] = {
            "states": states, "squares": squares, "work": works, "scalars": scalars, "options": options}
    return table


def functions():
    """The functions of gdm/gdm.h: name -> (address, C prototype)."""
    cdef const table *table = gdm_get_table()
    return {
        table.functions[i].name.decode(): (<size_t>table.functions[i].address, table.functions[i].signature.decode())
        for i in range(table.count)
    }


_checks.set_bfloat16 = set_bfloat16
