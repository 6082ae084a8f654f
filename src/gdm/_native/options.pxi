# Options: from Python values to the argument struct of a rule.

cdef str TORCH = _checks.FORMS[0]  # known by identity: _checks.options returns these very objects
cdef str CLASSIC = _checks.FORMS[1]


cdef inline double real(PyObject *x) noexcept:
    """The value of a float. For anything else NaN, which no option allows."""
    return PyFloat_AS_DOUBLE(<object>x) if PyFloat_CheckExact(<object>x) else float("nan")


cdef bint set_other(void *field, kind kind, PyObject *x) noexcept:
    """The rest of ``set_option``, which is inlined only if it is short."""
    cdef int overflow, k, several = 3 if kind == three_betas else 2
    if kind == phase:
        (<int *>field)[0] = x == Py_True
        return x == Py_True or x == Py_False
    if kind == form:
        (<int *>field)[0] = x == <PyObject *>CLASSIC
        return x == <PyObject *>CLASSIC or x == <PyObject *>TORCH
    if kind == count:
        if not PyLong_CheckExact(x):
            return False
        (<uint64_t *>field)[0] = <uint64_t>PyLong_AsLongLongAndOverflow(x, &overflow)
        return not overflow and <long long>(<uint64_t *>field)[0] > 0
    # betas, three_betas, etas, step_sizes
    if not PyTuple_CheckExact(x) or PyTuple_GET_SIZE(x) != several:
        return False
    for k in range(several):
        (<double *>field)[k] = real(PyTuple_GET_ITEM(x, k))
    return True


cdef inline bint set_option(void *field, kind kind, PyObject *x) noexcept:
    """Writes an option's value to its field of an argument struct; False for a value that _checks must check."""
    if kind == not_negative or kind == below_one or kind == up_to_one:
        (<double *>field)[0] = real(x)
        return True
    if kind == flag:
        (<int *>field)[0] = x == Py_True
        return x == Py_True or x == Py_False
    return set_other(field, kind, x)


cdef dict rule_numbers = {}  # by name
cdef list option_names = []  # of each rule, in the table's order
for _number in range(RULES):
    rule_numbers[gdm_rules[_number].name.decode()] = _number
    option_names.append([])
    while gdm_rules[_number].options[len(option_names[_number])].name != NULL:
        option_names[_number].append(gdm_rules[_number].options[len(option_names[_number])].name.decode())


cdef bint read_options(any_args *args, int rule, dict options) except -1:
    """Fills the argument struct of a rule for a plan; False if a value must be checked."""
    cdef const option_info *option = gdm_rules[rule].options
    memset(args, 0, sizeof(any_args))
    args.size = gdm_rules[rule].args_size
    for name in <list>option_names[rule]:
        if option.kind not in (count, factors, scalar, phase):  # a plan has these itself
            value = options[name]
            if not set_option(<char *>args + option.offset, option.kind, <PyObject *>value):
                return False
        option += 1
    return True


cdef int fill(any_args *args, int rule, dict options, double lr) except -1:
    """The same with hyperparameters that have been checked, and this ``lr``."""
    if not read_options(args, rule, options):
        raise RuntimeError(f"hyperparameters have not been checked: {options!r}")
    args.any.lr = lr
    return 0
