# Options: from Python values to the argument struct of a rule.

cdef str TORCH = _checks.FORMS[0]  # known by identity: _checks.options returns these very objects
cdef str CLASSIC = _checks.FORMS[1]


cdef inline double real(PyObject *x) noexcept:
    """A float's value; NaN, which no option allows, for anything else."""
    return PyFloat_AS_DOUBLE(<object>x) if PyFloat_CheckExact(<object>x) else float("nan")


cdef inline bint set_option(void *field, kind kind, PyObject *x) noexcept:
    """Writes an option's value to its field of an argument struct; False for a value that _checks has to look at."""
    cdef int overflow
    if kind == flag:
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
    if kind == betas:
        if not PyTuple_CheckExact(x) or PyTuple_GET_SIZE(x) != 2:
            return False
        (<double *>field)[0] = real(PyTuple_GET_ITEM(x, 0))
        (<double *>field)[1] = real(PyTuple_GET_ITEM(x, 1))
        return True
    (<double *>field)[0] = real(x)
    return True


cdef int rule_number(str name) except -1:
    cdef int i
    for i in range(RULES):
        if gdm_rules[i].name == name.encode():
            return i
    raise RuntimeError(f"there is no rule {name!r}")


cdef int fill(any_args *args, int rule, dict options) except -1:
    """Fills the argument struct of a rule with options that have been checked, for a plan."""
    cdef const option_info *option = gdm_rules[rule].options
    memset(args, 0, sizeof(any_args))
    args.size = gdm_rules[rule].args_size
    while option.name != NULL:
        if option.kind not in (count, factors, scalar):  # a plan has these itself
            value = options[option.name.decode()]
            if not set_option(<char *>args + option.offset, option.kind, <PyObject *>value):
                raise RuntimeError(f"{option.name.decode()} has not been checked: {value!r}")
        option += 1
    return 0
