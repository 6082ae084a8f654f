# The functions of the rules: gdm.sgd, gdm.momentum, ...

cdef enum:
    MAX_ARGUMENTS = 32  # of a function
    BUFFER = -1  # the kind of an argument that is a buffer


cdef inline bint is_buffer(int kind) noexcept nogil:
    """Whether an argument of this kind is an array."""
    return kind == BUFFER or kind == factors or kind == scalar


cdef class _Rule:
    """The function of one rule: gdm.sgd, gdm.momentum, ...

    It has the arguments of its reference: first the buffers; then, by keyword, the options, ``lr_scale``, and the
    states that only some options need.
    """

    cdef int number, count, positional
    cdef int[MAX_ARGUMENTS] kinds  # of each argument: a kind of option, or BUFFER
    cdef size_t[MAX_ARGUMENTS] places  # in the argument struct, or among the buffers
    cdef tuple names, defaults
    cdef object reference
    cdef PyMethodDef method
    cdef bytes name, doc

    def __cinit__(self, int number):
        cdef const rule_info *rule = &gdm_rules[number]
        cdef const option_info *option = rule.options
        cdef size_t i
        self.number = number
        self.name = rule.name
        self.reference = getattr(reference, self.name.decode())
        formula = self.reference.__wrapped__
        positional, keywords = reference.names(formula)
        given = formula.__kwdefaults__ or {}
        self.positional = len(positional)
        names = positional + keywords
        self.names = tuple(names)
        self.defaults = tuple(given.get(n, required) for n in names)
        self.count = len(names)
        places = {"param": (BUFFER, PARAM), "grad": (BUFFER, GRAD)}
        for i in range(rule.states):
            places[rule.state[i].name.decode()] = (BUFFER, STATE + i)
        while option.name != NULL:
            places[option.name.decode()] = (option.kind, option.offset)
            option += 1
        if set(names) != set(places) or self.count > MAX_ARGUMENTS:
            raise RuntimeError(f"reference.{self.name.decode()} has {names}; csrc/rules.def has {list(places)}")
        for i in range(<size_t>self.count):
            self.kinds[i], self.places[i] = places[names[i]]
        shown = []
        for n, d in zip(names, self.defaults, strict=True):
            shown.append(n if d is required else f"{n}={d!r}")
        shown.insert(self.positional, "*")
        self.doc = f"{self.name.decode()}({', '.join(shown)})\n--\n\n{formula.__doc__}".encode()
        self.method.ml_name = self.name
        self.method.ml_meth = <void *>call_rule
        self.method.ml_flags = METH_FASTCALL | METH_KEYWORDS
        self.method.ml_doc = self.doc

    def function(self):
        made = PyCFunction_NewEx(&self.method, self, __name__)
        share(made)
        return made

    cdef int attempt(self, PyObject **values) noexcept:
        """One update with these arguments. Returns GDM_OK, or a status that says why nothing was written."""
        cdef fp_mode found = set_default_fp_mode()
        cdef int status = self.update(values)
        restore_fp_mode(found)
        return status

    cdef int attempt_views(self, PyObject **values) except? REFUSED:
        """The same with arrays of other libraries, each seen as a NumPy array."""
        cdef PyObject *viewed[MAX_ARGUMENTS]
        cdef int i, k = 0
        cdef list arrays, given = []
        for i in range(self.count):
            if is_buffer(self.kinds[i]):
                given.append(<object>values[i])
        arrays = _foreign.views(given)
        if arrays is given:
            return REFUSED
        for i in range(self.count):
            viewed[i] = values[i]
            if is_buffer(self.kinds[i]):
                viewed[i] = items_of(<PyObject *>arrays)[k]
                k += 1
        return self.attempt(viewed)

    cdef inline int update(self, PyObject **values) noexcept:
        cdef any_args args
        cdef choice chosen
        cdef PyObject *arrays[MAX_BUFFERS]
        cdef PyObject *scalars[MAX_SCALARS]
        cdef void *buffers[MAX_BUFFERS]
        cdef void *field
        cdef PyObject *x
        cdef PyObject *param = values[0]
        cdef size_t n
        cdef int i, j, k, status, dtype, scalar_count = 0
        memset(&args, 0, sizeof(args))
        memset(arrays, 0, sizeof(arrays))
        args.size = gdm_rules[self.number].args_size
        for i in range(self.count):
            x = values[i]
            k = self.kinds[i]
            if k == BUFFER:
                arrays[self.places[i]] = NULL if x == <PyObject *>None else x
                continue
            field = <char *>&args + self.places[i]
            if k == factors:
                if x != <PyObject *>None:
                    arrays[SCALE] = x
                    (<void **>field)[0] = <void *>x
            elif k == scalar:
                if not is_usable(x, WRITABLE) or length(x) != 1 or PyArray_TYPE(<PyArrayObject *>x) != cnp.NPY_DOUBLE:
                    return REFUSED
                scalars[scalar_count] = x
                scalar_count += 1
                (<void **>field)[0] = data(x)
            elif not set_option(field, <kind>k, x):
                return REFUSED
        if not is_usable(param, WRITABLE):
            return REFUSED
        dtype = dtype_of(param)
        status = gdm_check(self.number, dtype, &args, &chosen)
        if status != OK:
            return status
        for i in range(MAX_BUFFERS):
            x = arrays[i]
            buffers[i] = NULL
            if x == NULL:
                if i == PARAM or i == GRAD or i >= STATE and chosen.used >> (i - STATE) & 1:
                    return REFUSED
                continue
            if i >= STATE and not chosen.used >> (i - STATE) & 1:
                return REFUSED  # given, and not needed
            if i != PARAM and not is_usable(x, READABLE if i == GRAD or i == SCALE else WRITABLE):
                return REFUSED
            if not is_like(x, param) or not is_inside_base(x, bytes_of(x)):
                return REFUSED
            buffers[i] = data(x)
            for j in range(scalar_count):
                if share_memory(scalars[j], x):
                    return REFUSED
        n = length(param)
        if n < GIL_THRESHOLD:
            return gdm_run(self.number, dtype, buffers, n, &args, &chosen)
        with nogil:
            status = gdm_run(self.number, dtype, buffers, n, &args, &chosen)
        return status

    cdef int find(self, PyObject *name) noexcept:
        """The place of the argument of this name, or -1."""
        cdef int i
        for i in range(self.count):
            if name == PyTuple_GET_ITEM(<PyObject *>self.names, i):
                return i
        for i in range(self.count):
            if <str>name == <str>PyTuple_GET_ITEM(<PyObject *>self.names, i):
                return i
        return -1


cdef object required = object()


cdef object call_rule(_Rule self, PyObject *const *args, Py_ssize_t given, PyObject *keywords):
    """A call of a rule's function, by the protocol METH_FASTCALL | METH_KEYWORDS."""
    cdef PyObject *values[MAX_ARGUMENTS]
    cdef int i, place, status
    cdef bint is_simple = given <= self.positional and not uses_reference()
    cdef Py_ssize_t named = 0 if keywords == NULL else PyTuple_GET_SIZE(keywords)
    if is_simple:
        for i in range(self.count):
            values[i] = args[i] if i < given else PyTuple_GET_ITEM(<PyObject *>self.defaults, i)
        for i in range(<int>named):
            place = self.find(PyTuple_GET_ITEM(keywords, i))
            if place < given:
                is_simple = False  # unknown, or given twice
                break
            values[place] = args[given + i]
        for i in range(self.count):
            if values[i] == <PyObject *>required:
                is_simple = False
        if is_simple:
            status = self.attempt(values)
            if status != OK:
                status = self.attempt_views(values)
            if status == OK:
                return None
    # Something is wrong or unusual: Python code handles it.
    plain, ordered = [], []
    for i in range(<int>given):
        plain.append(<object>args[i])
    options = {<object>PyTuple_GET_ITEM(keywords, i): <object>args[given + i] for i in range(named)}
    if not is_simple:
        return self.reference(*plain, **options)  # or the user wants the reference
    asked = {self.names[i]: <object>values[i] for i in range(self.count)}
    checked = _checks.arguments(gdm_rules[self.number].name.decode(), asked, self.positional)
    for name in self.names:
        ordered.append(checked[name])
    for i in range(self.count):
        values[i] = <PyObject *>(<list>ordered)[i]
    status = self.attempt(values)
    if status != OK:
        refuse(status)


for _number in range(RULES):
    _rule = _Rule(_number)
    globals()[_rule.function().__name__] = _rule.function()
