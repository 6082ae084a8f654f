# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, binding=True, autotestdict=False, auto_pickle=False
"""The compiled layer: calls the kernels on validated pointers.

What is here only asks whether everything is in order. If anything is not, :mod:`gdm._checks` looks again and raises
what there is to say, or hands back plain arrays (for a buffer that is not a NumPy array). Rules and their options come
from the table in csrc/rules.def; names, defaults and docstrings of their functions from :mod:`gdm.reference`.
"""

cimport numpy as cnp
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport uint64_t
from libc.string cimport memset

from . import _checks, reference
from .errors import StaleBufferError

cnp.import_array()

cdef extern from "numpy/arrayobject.h" nogil:
    ctypedef struct PyArrayObject:
        pass
    int PyArray_NDIM(const PyArrayObject *)
    int PyArray_FLAGS(const PyArrayObject *)
    int PyArray_TYPE(const PyArrayObject *)
    void *PyArray_DATA(const PyArrayObject *)
    const Py_ssize_t *PyArray_DIMS(const PyArrayObject *)
    bint PyArray_ISNOTSWAPPED(const PyArrayObject *)
    bint PyArray_Check(PyObject *)
    bint PyArray_CheckExact(PyObject *)

cdef extern from "Python.h":
    ctypedef struct PyMethodDef:
        const char *ml_name
        void *ml_meth
        int ml_flags
        const char *ml_doc
    int METH_FASTCALL, METH_KEYWORDS
    PyObject *Py_True
    PyObject *Py_False
    object PyCFunction_NewEx(PyMethodDef *, object self, object module)
    bint PyLong_CheckExact(PyObject *)
    bint PyTuple_CheckExact(PyObject *)
    Py_ssize_t PyTuple_GET_SIZE(PyObject *)
    PyObject *PyTuple_GET_ITEM(PyObject *, Py_ssize_t)
    long long PyLong_AsLongLongAndOverflow(PyObject *, int *overflow)

cdef extern from *:
    """
    #define GDM_ITEMS(list) (((PyListObject *)(list))->ob_item)
    """
    PyObject **items_of "GDM_ITEMS"(PyObject *list)  # borrowed, as long as the list is not changed

cdef extern from "plan.h" nogil:
    ctypedef int status "gdm_status"
    cdef enum:
        OK "GDM_OK"
        RULES, F32, F64, PARAM, GRAD, SCALE, STATE, MAX_STATES, MAX_BUFFERS
    enum kind:
        not_negative, below_one, up_to_one, flag, form, factors, count, betas, scalar
    struct option_info:
        const char *name
        kind kind
        size_t offset
    struct state_info:
        const char *name
        const char *option
    union any_args "args":
        size_t size
    struct prepared:
        unsigned used
        const void *scale
    struct rule_info:
        const char *name
        unsigned states
        state_info *state
        const option_info *options
        size_t args_size
        status prepare(const any_args *args, prepared *out)
    const rule_info gdm_rules[]
    struct entry:
        void **buffers
        size_t n
        unsigned char dtype
        unsigned char started
        unsigned char order
    struct group:
        int rule
        uint64_t steps
        double product
        any_args args
    ctypedef struct plan "gdm_plan":
        group *groups
        size_t group_count
        entry *entries
        size_t count
        size_t elements
        unsigned threads
        bint fresh
    ctypedef struct function "gdm_function":
        const char *name
        void *address
        const char *signature
    ctypedef struct table "gdm_table":
        const function *functions
        size_t count
    status gdm_run(int rule, int dtype, void **buffers, size_t n, const prepared *how)
    status gdm_plan_create(plan **plan)
    void gdm_plan_destroy(plan *plan)
    status gdm_plan_add_group(plan *plan, int rule, const void *args, size_t *index)
    status gdm_plan_configure(group *group, int rule, const any_args *args)
    status gdm_plan_add(plan *plan, size_t group, int dtype, void *param, void **states, const void *grad, size_t n,
                        size_t *index)
    status gdm_plan_set_lr_scale(plan *plan, size_t index, const void *lr_scale)
    status gdm_plan_arrange(plan *plan)
    bint gdm_plan_overlaps(const plan *plan, const void *start, size_t bytes)
    status gdm_plan_run(plan *plan)
    const char *gdm_strerror(status)
    const char *gdm_version()
    const char *gdm_isa()
    const char *gdm_available_isa(size_t i)
    status gdm_set_isa(const char *name)
    int gdm_get_num_threads()
    status gdm_set_num_threads(int n)
    const table *gdm_get_table()

cdef extern from "pool.h" nogil:
    unsigned gdm_generation()

cdef extern from *:
    """
    #ifdef __clang__
    #define GDM_COMPILER "clang " __clang_version__
    #elif defined __GNUC__
    #define GDM_COMPILER "gcc " __VERSION__
    #else
    #define GDM_COMPILER "unknown"
    #endif
    """
    const char *GDM_COMPILER
    const char *GDM_FLAGS  # defined by the build

cdef enum:
    # From so many elements on, some microseconds' work, a call lets other threads run: handing the interpreter over and
    # back is little against that.
    GIL_THRESHOLD = 32768
    WRITABLE = cnp.NPY_ARRAY_ALIGNED | cnp.NPY_ARRAY_WRITEABLE
    IN_ORDER = cnp.NPY_ARRAY_C_CONTIGUOUS | cnp.NPY_ARRAY_F_CONTIGUOUS
    REFUSED = -1  # a call did not pass the checks here, which come before those in C

cdef bint use_reference = False

# What a program imports to call without linking: gdm/import.h.
c_api = PyCapsule_New(<void *>gdm_get_table(), "gdm._core.c_api", NULL)


# ---- what is in order ------------------------------------------------------------------------------------------------

cdef inline bint is_usable(PyObject *x, int flags) noexcept nogil:
    """A NumPy array of native floats with these flags; no subclass, which _checks has to look at."""
    cdef PyArrayObject *array = <PyArrayObject *>x
    cdef int kind
    if not PyArray_CheckExact(x) or PyArray_FLAGS(array) & flags != flags:
        return False
    kind = PyArray_TYPE(array)
    return (kind == cnp.NPY_FLOAT or kind == cnp.NPY_DOUBLE) and PyArray_ISNOTSWAPPED(array)


cdef inline bint is_like(PyObject *x, PyObject *param) noexcept nogil:
    """Of the parameter's dtype, shape, and memory order."""
    cdef PyArrayObject *a = <PyArrayObject *>x
    cdef PyArrayObject *b = <PyArrayObject *>param
    cdef int i, ndim = PyArray_NDIM(b)
    if not (PyArray_FLAGS(a) & PyArray_FLAGS(b) & IN_ORDER):
        return False
    if PyArray_TYPE(a) != PyArray_TYPE(b) or PyArray_NDIM(a) != ndim:
        return False
    for i in range(ndim):
        if PyArray_DIMS(a)[i] != PyArray_DIMS(b)[i]:
            return False
    return True


cdef inline size_t length(PyObject *x) noexcept nogil:
    cdef size_t n = 1
    cdef int i
    for i in range(PyArray_NDIM(<PyArrayObject *>x)):
        n *= <size_t>PyArray_DIMS(<PyArrayObject *>x)[i]
    return n


cdef inline int dtype_of(PyObject *x) noexcept nogil:
    return F32 if PyArray_TYPE(<PyArrayObject *>x) == cnp.NPY_FLOAT else F64


cdef inline size_t bytes_of(PyObject *x) noexcept nogil:
    return length(x) * (4 if dtype_of(x) == F32 else 8)


cdef inline void *data(PyObject *x) noexcept nogil:
    return PyArray_DATA(<PyArrayObject *>x)


cdef object refuse(int status):
    """The C functions refuse what the checks in Python let through: a wrong GDM_ISA, or a mistake of ours."""
    raise RuntimeError(f"gdm: {gdm_strerror(status).decode()}")


# ---- options ---------------------------------------------------------------------------------------------------------

cdef inline double real(PyObject *x) noexcept:
    """A float's value; NaN, which is in no option's domain, for anything else."""
    return PyFloat_AS_DOUBLE(<object>x) if PyFloat_CheckExact(<object>x) else float("nan")


cdef inline bint set_option(void *field, kind kind, PyObject *x) noexcept:
    """Puts an option's value into its field of an argument struct; False for one that _checks has to look at."""
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


cdef str TORCH = _checks.FORMS[0]  # by identity: _checks.options hands out these very objects
cdef str CLASSIC = _checks.FORMS[1]


cdef int rule_number(str name) except -1:
    cdef int i
    for i in range(RULES):
        if gdm_rules[i].name == name.encode():
            return i
    raise RuntimeError(f"there is no rule {name!r}")


cdef int fill(any_args *args, int rule, dict options) except -1:
    """The argument struct of a rule with these options, which have been checked; those of a plan's own are left out."""
    cdef const option_info *option = gdm_rules[rule].options
    memset(args, 0, sizeof(any_args))
    args.size = gdm_rules[rule].args_size
    while option.name != NULL:
        if option.kind not in (count, scalar, factors):
            value = options[option.name.decode()]
            if not set_option(<char *>args + option.offset, option.kind, <PyObject *>value):
                raise RuntimeError(f"{option.name.decode()} has not been checked: {value!r}")
        option += 1
    return 0


# ---- rules -----------------------------------------------------------------------------------------------------------

cdef enum:
    MOST = 32  # arguments of a function
    BUFFER = -1  # the kind of an argument that is one


cdef class _Rule:
    """The function of one rule: gdm.sgd, gdm.momentum, ...

    It has the arguments of its reference: first the buffers; then, by keyword, the options, ``lr_scale``, and the
    states that only some options need.
    """

    cdef int number, count, positional
    cdef int[MOST] kinds  # of each argument: a kind of option, or BUFFER
    cdef size_t[MOST] places  # in the argument struct, or among the buffers
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
        if set(names) != set(places) or self.count > MOST:
            raise RuntimeError(f"reference.{self.name.decode()} has {names}; csrc/rules.def has {list(places)}")
        for i in range(<size_t>self.count):
            self.kinds[i], self.places[i] = places[names[i]]
        shown = [n if d is required else f"{n}={d!r}" for n, d in zip(names, self.defaults, strict=True)]
        shown.insert(self.positional, "*")
        self.doc = f"{self.name.decode()}({', '.join(shown)})\n--\n\n{formula.__doc__}".encode()
        self.method.ml_name = self.name
        self.method.ml_meth = <void *>call_rule
        self.method.ml_flags = METH_FASTCALL | METH_KEYWORDS
        self.method.ml_doc = self.doc

    def function(self):
        return PyCFunction_NewEx(&self.method, self, __name__)

    cdef int attempt(self, PyObject **values) noexcept:
        """One update with these arguments: GDM_OK, or why not. Nothing is written then."""
        cdef any_args args
        cdef prepared how
        cdef PyObject *arrays[MAX_BUFFERS]
        cdef PyObject *moved = NULL
        cdef void *buffers[MAX_BUFFERS]
        cdef void *field
        cdef PyObject *x
        cdef PyObject *param = values[0]
        cdef size_t n
        cdef int i, k, status, dtype
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
                    (<void **>field)[0] = <void *>x  # for prepare to see that there is one
            elif k == scalar:
                if not is_usable(x, WRITABLE) or length(x) != 1 or PyArray_TYPE(<PyArrayObject *>x) != cnp.NPY_DOUBLE:
                    return REFUSED
                moved = x
                (<void **>field)[0] = data(x)
            elif not set_option(field, <kind>k, x):
                return REFUSED
        status = gdm_rules[self.number].prepare(&args, &how)
        if status != OK:
            return status
        for i in range(MAX_BUFFERS):
            x = arrays[i]
            buffers[i] = NULL
            if x == NULL:
                if i == PARAM or i == GRAD or i >= STATE and how.used >> (i - STATE) & 1:
                    return REFUSED
                continue
            if i >= STATE and not how.used >> (i - STATE) & 1:
                return REFUSED  # given, and not needed
            if not is_usable(x, cnp.NPY_ARRAY_ALIGNED if i == GRAD or i == SCALE else WRITABLE):
                return REFUSED
            if not is_like(x, param):
                return REFUSED
            buffers[i] = data(x)
            if moved != NULL and (<char *>data(moved) < <char *>data(x) + bytes_of(x)
                                  and <char *>data(x) < <char *>data(moved) + sizeof(double)):
                return REFUSED
        if arrays[SCALE] != NULL:
            how.scale = buffers[SCALE]
        n = length(param)
        dtype = dtype_of(param)
        if n < GIL_THRESHOLD:
            return gdm_run(self.number, dtype, buffers, n, &how)
        with nogil:
            status = gdm_run(self.number, dtype, buffers, n, &how)
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
    cdef PyObject *values[MOST]
    cdef int i, place, status
    cdef bint in_form = given <= self.positional and not use_reference
    cdef Py_ssize_t named = 0 if keywords == NULL else PyTuple_GET_SIZE(keywords)
    if in_form:
        for i in range(self.count):
            values[i] = args[i] if i < given else PyTuple_GET_ITEM(<PyObject *>self.defaults, i)
        for i in range(<int>named):
            place = self.find(PyTuple_GET_ITEM(keywords, i))
            if place < given:
                in_form = False  # unknown, or given twice
                break
            values[place] = args[given + i]
        for i in range(self.count):
            if values[i] == <PyObject *>required:
                in_form = False
        if in_form:
            status = self.attempt(values)
            if status == OK:
                return None
    # Something is not as it should be: from here on in Python.
    plain = [<object>args[i] for i in range(given)]
    options = {<object>PyTuple_GET_ITEM(keywords, i): <object>args[given + i] for i in range(named)}
    if not in_form:
        return self.reference(*plain, **options)  # or the reference is what is wanted
    asked = {self.names[i]: <object>values[i] for i in range(self.count)}
    checked = _checks.arguments(asked, self.positional)
    ordered = [checked[name] for name in self.names]
    for i in range(self.count):
        values[i] = <PyObject *>(<list>ordered)[i]
    status = self.attempt(values)
    if status != OK:
        refuse(status)


for _number in range(RULES):
    _rule = _Rule(_number)
    globals()[_rule.function().__name__] = _rule.function()


# ---- optimizers ------------------------------------------------------------------------------------------------------

cdef inline bint is_unchanged(PyObject *x, int flags, const void *was_at, const entry *e) noexcept nogil:
    """Still the memory that was checked when the array was given: address, length, dtype, order, flags."""
    cdef PyArrayObject *array = <PyArrayObject *>x
    return (data(x) == was_at and length(x) == e.n and PyArray_FLAGS(array) & (flags | IN_ORDER) == flags | e.order
            and PyArray_TYPE(array) == (cnp.NPY_FLOAT if e.dtype == F32 else cnp.NPY_DOUBLE)
            and PyArray_ISNOTSWAPPED(array))


cdef class Stepper:
    """What makes an optimizer fast: its plan, the arrays behind it, and the step.

    A subclass checks what it is given in Python, then hands it over through the methods with an underscore. It provides
    ``_check_grads(grads)``, which returns a new list of arrays after every check, whatever the structure,
    ``_reference_step(grads)``, a whole step in NumPy, and ``_set_rates()``, which sets learning rates that a schedule
    gives.
    """

    cdef plan *plan
    cdef list given  # the user's arrays, which may change
    cdef list params  # our views of them, which do not
    cdef list held  # what else the plan points into: states and factors
    cdef list bound  # the gradients bound, or None
    cdef void **bound_at  # where they were then
    cdef bint one, flat, scheduled
    cdef readonly size_t _version  # counts the changes of the plan
    cdef unsigned busy  # 0, or 1 + the process's generation: a forked child is not in the step its parent was in

    def __dealloc__(self):
        gdm_plan_destroy(self.plan)
        PyMem_Free(self.bound_at)

    cdef int require(self, size_t groups=0) except -1:
        """Requires a plan, with at least so many groups."""
        if self.plan == NULL:
            raise RuntimeError("this optimizer has not been initialised")
        if self.plan.group_count < groups:
            raise RuntimeError("there is no such group")
        return 0

    def _table(self, list given, list params, list states, list scales, list group_of, list groups, bint one,
               bint flat, list started, list progress, bint scheduled, list writes):
        """Takes the parameters, in place of those that were there before, or raises and leaves everything as it was.

        Parallel lists: the user's arrays; our views of them; the list of each one's states (None for one that its rule
        does not use); its ``lr_scale`` or None; the index of its group; whether its states have been through a step.
        ``groups`` holds each one's rule and options, ``progress`` how far each is. ``one``: gradients come as a single
        array; ``flat``: as a plain sequence. ``scheduled``: ``_set_rates()`` is to be called before each step.
        ``writes``: arrays and what is to be copied into each, of its dtype and shape.

        What is bound stays bound if there are as many parameters as before.
        """
        cdef plan *plan = NULL
        cdef any_args args
        cdef void *buffers[MAX_STATES]
        cdef void **bound_at = NULL
        cdef size_t i, k, index, count = <size_t>len(params)
        cdef bint rebind = self.plan == NULL or self.plan.count != count
        cdef list held = [states, scales]
        cdef int number, status = gdm_plan_create(&plan)
        try:
            for rule, options in groups:
                number = rule_number(rule)
                fill(&args, number, options)
                status = status or gdm_plan_add_group(plan, number, &args, &index)
                if not status:
                    plan.groups[index].steps, plan.groups[index].product = progress[<Py_ssize_t>index]
            for i in range(count):
                param, its_states, scale = params[i], states[i], scales[i]
                memset(buffers, 0, sizeof(buffers))
                for k in range(<size_t>len(its_states)):
                    state = its_states[k]
                    buffers[k] = NULL if state is None else data(<PyObject *>state)
                status = status or gdm_plan_add(
                    plan, group_of[i], dtype_of(<PyObject *>param), data(<PyObject *>param), buffers, NULL,
                    length(<PyObject *>param), &index)
                if scale is not None:
                    status = status or gdm_plan_set_lr_scale(plan, index, data(<PyObject *>scale))
                if not status:
                    plan.entries[i].order = PyArray_FLAGS(<PyArrayObject *><PyObject *>param) & IN_ORDER
                    plan.entries[i].started = bool(started[i])
            status = status or gdm_plan_arrange(plan)
            if rebind:
                bound_at = <void **>PyMem_Calloc(count + 1, sizeof(void *))
                if bound_at == NULL:
                    raise MemoryError
            if status != OK:
                refuse(status)
            # From here on nothing fails.
            plan.threads = 0 if self.plan == NULL else self.plan.threads
            self.plan, plan = plan, self.plan
            self._version += 1
            if rebind:
                self.bound_at, bound_at = bound_at, self.bound_at
                self.bound = None
            self.given = given
            self.params = params
            self.held = held
            self.one = one
            self.flat = flat
            self.scheduled = scheduled
            self._write(writes)
        finally:
            gdm_plan_destroy(plan)
            PyMem_Free(bound_at)

    def _configure(self, list changes, bint scheduled):
        """Sets rules and options, which have been checked, of groups whose states are there: all or none.

        ``changes`` holds the index, rule and options of each group. ``scheduled`` as above.
        """
        cdef group *changed
        cdef any_args args
        cdef size_t i, index, count = <size_t>len(changes)
        cdef int number, status = OK
        self.require()
        changed = <group *>PyMem_Malloc(count * sizeof(group))
        if changed == NULL:
            raise MemoryError
        try:
            for i in range(count):
                index, rule, options = changes[i]
                self.require(index + 1)
                number = rule_number(rule)
                fill(&args, number, options)
                changed[i] = self.plan.groups[index]
                status = status or gdm_plan_configure(&changed[i], number, &args)
            if status != OK:
                refuse(status)
            for i in range(count):
                self.plan.groups[<size_t>changes[i][0]] = changed[i]
            self.plan.fresh = True
            self.scheduled = scheduled
            self._version += 1
        finally:
            PyMem_Free(changed)

    def _write(self, list writes):
        """Copies into each array what goes with it: out of reach of an interrupt, which Python code would stop at."""
        for array, value in writes:
            array[...] = value

    def _set_rate(self, size_t index, double lr):
        """Sets a group's learning rate alone, which has been checked."""
        cdef group *group
        cdef any_args args
        cdef const option_info *option
        cdef int status
        self.require(index + 1)
        group = &self.plan.groups[index]
        option = gdm_rules[group.rule].options
        args = group.args
        while option.name != NULL and option.name != b"lr":
            option += 1
        (<double *>(<char *>&args + option.offset))[0] = lr
        status = gdm_plan_configure(group, group.rule, &args)
        if status != OK:
            refuse(status)

    def _progress_of(self, size_t index):
        """The steps that a group has made, and its product of momenta."""
        self.require(index + 1)
        return self.plan.groups[index].steps, self.plan.groups[index].product

    @property
    def _given(self):
        """The parameters as the user gave them."""
        return self.given

    @property
    def _started(self):
        """For each parameter, whether its states have been through a step."""
        self.require()
        return [bool(self.plan.entries[i].started) for i in range(self.plan.count)]

    def _stepped(self, list writes, list started, list progress):
        """Takes over a step that the reference has made: what is to be written, as above, and how far all are then."""
        cdef size_t i
        self.require()
        if <size_t>len(started) != self.plan.count or <size_t>len(progress) != self.plan.group_count:
            raise RuntimeError("there are other parameters or groups")
        self._write(writes)
        for i in range(self.plan.count):
            self.plan.entries[i].started = bool(started[i])
        for i in range(self.plan.group_count):
            self.plan.groups[i].steps, self.plan.groups[i].product = progress[i]
        self.plan.fresh = True

    @property
    def _threads(self):
        """How many threads a step may use; None for what gdm.get_num_threads says."""
        self.require()
        return self.plan.threads or None

    @_threads.setter
    def _threads(self, n):
        self.require()
        self.plan.threads = 0 if n is None else n

    cpdef int _enter(self) except -1:
        """Whoever changes the plan or walks it does so alone, until ``_leave``."""
        if self.busy == 1 + gdm_generation():
            raise RuntimeError("this optimizer is already in the middle of a step")
        self.busy = 1 + gdm_generation()
        return 0

    cpdef void _leave(self) noexcept:
        self.busy = 0

    cdef int stale(self, str what, size_t i) except -1:
        raise StaleBufferError(
            f"{self._label(what, i)} has moved, been resized, or changed in another way since it was bound")

    cdef int check_params(self) except -1:
        cdef size_t i
        cdef entry *e = self.plan.entries
        cdef PyObject **params = items_of(<PyObject *>self.given)
        for i in range(self.plan.count):
            if not is_unchanged(params[i], WRITABLE, e[i].buffers[PARAM], &e[i]):
                self.stale("params", i)
        return 0

    cdef bint all_in_order(self, list grads, bint exact) noexcept:
        """Whether there is one gradient for each parameter, like it, in order, and apart from what a step writes."""
        cdef size_t i
        cdef entry *e = self.plan.entries
        cdef PyObject **params = items_of(<PyObject *>self.params)
        cdef PyObject **items = items_of(<PyObject *>grads)
        cdef PyObject *grad
        if <size_t>len(grads) != self.plan.count:
            return False
        for i in range(self.plan.count):
            grad = items[i]
            if not (is_usable(grad, cnp.NPY_ARRAY_ALIGNED) or not exact and PyArray_Check(grad)):
                return False
            if not is_like(grad, params[i]):
                return False
            if data(grad) != e[i].buffers[GRAD] and gdm_plan_overlaps(self.plan, data(grad), bytes_of(grad)):
                return False
        return True

    cdef list take(self, grads, bint own):
        """The gradients as a list of arrays, each checked against its parameter; ``own``: not the caller's list.

        User code may run in here (a mapping's, an iterator's, a buffer's): the parameters are checked after it. None
        may run between here and the end of the step.
        """
        cdef list items
        cdef bint in_list = self.flat and type(grads) is list
        self.require()
        if self.one and PyArray_CheckExact(<PyObject *>grads):
            items = [grads]
        elif in_list:
            items = list(grads) if own else grads
        else:
            items = self._flatten(grads)
        if self.all_in_order(items, True):
            return items
        self.check_params()  # a parameter that has changed is not a gradient's mistake
        items = self._check_grads(list(self._flatten(items)) if in_list else items)
        if not self.all_in_order(items, False):
            raise StaleBufferError("grads changed while they were being checked")
        return items

    def bind(self, grads):
        """Takes the arrays that every later ``step()`` reads its gradients from.

        Parameters
        ----------
        grads : in the structure of ``params``
            One array for each parameter, of its dtype, shape and memory order, contiguous and aligned. They are kept
            alive; put each new gradient into them (``grad[...] = ...``).

        Raises
        ------
        TypeError, ValueError, gdm.OverlapError
            As :meth:`step` does. What was bound before stays bound.
        """
        cdef size_t i
        cdef list items
        self._enter()
        try:
            items = self.take(grads, own=True)  # the caller's list may change
            self.check_params()
            for i in range(self.plan.count):
                self.bound_at[i] = data(items_of(<PyObject *>items)[i])
            self.bound = items
        finally:
            self._leave()

    def step(self, grads=None):
        """Updates every parameter and its state, in place.

        Parameters
        ----------
        grads : in the structure of ``params``, optional
            The gradients, for this step only. Without it, those that were bound are read.

        Raises
        ------
        TypeError
            For a gradient that is no buffer of float32 or float64, or is byte-swapped.
        ValueError
            For a gradient that does not fit its parameter, is not contiguous, or misaligned; or if the structure of
            ``grads`` is not that of ``params``.
        gdm.OverlapError
            If a gradient shares memory with a parameter or a state.
        gdm.StaleBufferError
            If a parameter or a bound gradient has moved, been resized, or changed its dtype, order or flags.
        RuntimeError
            If another thread is in the middle of a step, or nothing is bound.

        After an exception nothing has changed.
        """
        cdef size_t i
        cdef bint alone
        cdef list items
        cdef entry *e
        cdef PyObject *grad
        cdef PyObject **arrays
        cdef int status
        self._enter()
        try:
            self.require()
            if grads is None and self.bound is None:
                raise RuntimeError("no gradients: call step(grads), or bind(grads) first")
            if self.scheduled:
                self._set_rates()  # the user's code: before anything is looked at
            # While other threads run, or the reference, the caller's list may change, and let go of its arrays.
            alone = self.plan.elements < GIL_THRESHOLD and not use_reference
            items = self.bound if grads is None else self.take(grads, own=not alone)
            self.check_params()
            arrays = items_of(<PyObject *>items)
            for i in range(self.plan.count):
                e = &self.plan.entries[i]
                grad = arrays[i]
                if grads is None and not is_unchanged(grad, cnp.NPY_ARRAY_ALIGNED, self.bound_at[i], e):
                    self.stale("grads", i)
                e.buffers[GRAD] = data(grad)
            if use_reference:
                self._reference_step(items)
                return
            if alone:
                status = gdm_plan_run(self.plan)
            else:
                with nogil:
                    status = gdm_plan_run(self.plan)
            if status != OK:
                refuse(status)
        finally:
            self._leave()


# ---- the library -----------------------------------------------------------------------------------------------------

def set_reference(bint on):
    """Runs everything on the NumPy rules, or not."""
    global use_reference
    use_reference = on


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
    """Uses this instruction set from now on. Returns whether this machine can."""
    return gdm_set_isa(name.encode()) == OK


def get_num_threads():
    """How many threads a step may use."""
    return gdm_get_num_threads()


def set_num_threads(int n):
    """Sets that. Returns whether it is a possible number."""
    return gdm_set_num_threads(n) == OK


def build_info():
    """How this module was built."""
    return {"version": gdm_version().decode(), "compiler": GDM_COMPILER.decode(), "flags": GDM_FLAGS.decode()}


def rules():
    """The table of rules (csrc/rules.def): what each is made of, for tests and benchmarks to enumerate.

    For each: ``states``, a dict of their names, with the name of the option without which one is not used, or None; and
    ``options``, a dict of their names and kinds.
    """
    kinds = {not_negative: "not_negative", below_one: "below_one", up_to_one: "up_to_one", flag: "flag", form: "form",
             factors: "factors", count: "count", betas: "betas", scalar: "scalar"}
    cdef int i, k
    table = {}
    for i in range(RULES):
        states, options = {}, {}
        for k in range(gdm_rules[i].states):
            needs = gdm_rules[i].state[k].option
            states[gdm_rules[i].state[k].name.decode()] = None if needs == NULL else needs.decode()
        k = 0
        while gdm_rules[i].options[k].name != NULL:
            options[gdm_rules[i].options[k].name.decode()] = kinds[gdm_rules[i].options[k].kind]
            k += 1
        table[gdm_rules[i].name.decode()] = {"states": states, "options": options}
    return table


def functions():
    """The functions of gdm/gdm.h: name -> (address, C prototype)."""
    cdef const table *table = gdm_get_table()
    return {
        table.functions[i].name.decode(): (<size_t>table.functions[i].address, table.functions[i].signature.decode())
        for i in range(table.count)
    }
