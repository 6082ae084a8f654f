# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, binding=True, autotestdict=False, auto_pickle=False
"""The compiled layer: calls the kernels on validated pointers.

A function here only asks whether everything is in order. If anything is not, :mod:`gdm._checks` looks again and raises
what there is to say, or hands back plain arrays (for a buffer that is not a NumPy array).
"""

cimport numpy as cnp
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_Check
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.object cimport PyObject

cimport gdm as c

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

cdef extern from *:
    """
    #define GDM_ITEMS(list) (((PyListObject *)(list))->ob_item)
    """
    PyObject **items_of "GDM_ITEMS"(PyObject *list)  # borrowed, as long as the list is not changed

cdef extern from "plan.h" nogil:
    cdef enum:
        RULE_sgd, RULE_momentum, RULES, F32, F64, PARAM, GRAD, STATE, MAX_BUFFERS
    struct rule_info:
        const char *name
        const char *state_names
        const char *reals
        const char *flags
    const rule_info gdm_rules[]
    struct prepared:
        pass
    struct entry:
        void **buffers
        size_t n
        unsigned group
        unsigned char dtype
        unsigned char started
        unsigned char order
    struct group:
        int rule
        prepared prepared
    struct plan:
        group *groups
        size_t group_count
        entry *entries
        size_t count
        unsigned threads
        bint fresh
    c.status gdm_prepare_sgd(const c.sgd_args *args, prepared *out)
    c.status gdm_prepare_momentum(const c.momentum_args *args, prepared *out)
    c.status gdm_run(int rule, int dtype, void **buffers, size_t n, const prepared *how)
    c.status gdm_plan_init(plan *plan, size_t groups, size_t entries)
    void gdm_plan_free(plan *plan)
    c.status gdm_plan_arrange(plan *plan)
    bint gdm_plan_overlaps(const plan *plan, const void *start, size_t bytes)
    c.status gdm_plan_step(plan *plan)

cdef extern from "pool.h" nogil:
    unsigned gdm_generation()

cdef extern from "limit.h" nogil:
    bint gdm_limit(size_t variant, char **buffers, size_t count, size_t bytes)

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


cdef inline size_t bytes_of(PyObject *x) noexcept nogil:
    return length(x) * (4 if PyArray_TYPE(<PyArrayObject *>x) == cnp.NPY_FLOAT else 8)


cdef inline void *data(PyObject *x) noexcept nogil:
    return PyArray_DATA(<PyArrayObject *>x)


cdef inline double real(object x) noexcept:
    """A float's value; NaN, which is in no option's domain, for anything else."""
    return PyFloat_AS_DOUBLE(x) if PyFloat_Check(x) else float("nan")


cdef inline int flag(object x) noexcept:
    return 1 if x is True else 0 if x is False else REFUSED


cdef inline int form_of(object x) noexcept:
    return 0 if x is "torch" else 1 if x is "classic" else REFUSED


cdef inline int run(int rule, int count, PyObject **arrays, const prepared *how) noexcept:
    """One update of ``count`` arrays (param, grad, states): GDM_OK, or why not. Nothing is written then."""
    cdef void *buffers[MAX_BUFFERS]
    cdef size_t n
    cdef int i, dtype, status
    for i in range(count):
        if not is_usable(arrays[i], WRITABLE if i != GRAD else cnp.NPY_ARRAY_ALIGNED):
            return REFUSED
        if not is_like(arrays[i], arrays[PARAM]):
            return REFUSED
        buffers[i] = data(arrays[i])
    n = length(arrays[PARAM])
    dtype = F32 if PyArray_TYPE(<PyArrayObject *>arrays[PARAM]) == cnp.NPY_FLOAT else F64
    if n < GIL_THRESHOLD:
        return gdm_run(rule, dtype, buffers, n, how)
    with nogil:
        status = gdm_run(rule, dtype, buffers, n, how)
    return status


cdef object refuse(int status):
    """The C functions refuse what the checks in Python let through: a wrong GDM_ISA, or a mistake of ours."""
    raise RuntimeError(f"gdm: {c.strerror(<c.status>status).decode()}")


# ---- rules -----------------------------------------------------------------------------------------------------------

cdef int prepare_sgd(prepared *how, lr, weight_decay, maximize, decoupled_weight_decay) noexcept:
    cdef c.sgd_args args = c.sgd_args(
        sizeof(c.sgd_args), real(lr), real(weight_decay), flag(maximize), flag(decoupled_weight_decay))
    if (args.maximize | args.decoupled_weight_decay) < 0:
        return REFUSED
    return gdm_prepare_sgd(&args, how)


cdef int try_sgd(param, grad, lr, weight_decay, maximize, decoupled_weight_decay) noexcept:
    cdef prepared how
    cdef PyObject *arrays[2]
    arrays[:] = [<PyObject *>param, <PyObject *>grad]
    cdef int status = prepare_sgd(&how, lr, weight_decay, maximize, decoupled_weight_decay)
    return run(RULE_sgd, 2, arrays, &how) if status == c.OK else status


def sgd(param, grad, *, lr, weight_decay=0.0, maximize=False, decoupled_weight_decay=False):
    """Gradient descent, in place: ``param`` becomes ``param - lr * grad``.

    Parameters
    ----------
    param : array of float32 or float64, any shape
        The parameter θ; overwritten. Contiguous (C or Fortran order), aligned and writable. A NumPy array, or anything
        else with the buffer protocol.
    grad : array like ``param``
        The gradient g at ``param``; only read, and may be read-only.
    lr : float
        The learning rate η, finite and not negative. No unit of its own: that of ``param`` over that of ``grad``.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the gradient.
    maximize : bool, default False
        Walk up the gradient instead of down.
    decoupled_weight_decay : bool, default False
        Multiply ``param`` by ``1 - lr * weight_decay`` first, and leave the gradient alone.

    Raises
    ------
    TypeError
        For what is no buffer, another dtype, byte-swapped data, or an option of the wrong type.
    ValueError
        If shapes, dtypes or memory orders differ; a buffer is not contiguous, misaligned, or read-only; or an option
        is outside its range.
    gdm.OverlapError
        If ``param`` and ``grad`` share memory.

    After an exception ``param`` is as it was.

    Notes
    -----
    The formula, in the order it is rounded, each operation once::

        g = -grad if maximize else grad
        g = g + weight_decay * param                 # unless decoupled_weight_decay, or weight_decay is 0
        param = (1 - lr * weight_decay) * param      # if decoupled_weight_decay
        param = param - lr * g

    Source: A. Cauchy, "Méthode générale pour la résolution des systèmes d'équations simultanées", 1847; the options as
    in ``torch.optim.SGD``.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta = np.array([1.0, 2.0])
    >>> gdm.sgd(theta, np.array([0.5, -0.5]), lr=0.5)
    >>> theta
    array([0.75, 2.25])
    """
    if use_reference:
        reference.sgd(param, grad, lr=lr, weight_decay=weight_decay, maximize=maximize,
                      decoupled_weight_decay=decoupled_weight_decay)
        return
    cdef int status = try_sgd(param, grad, lr, weight_decay, maximize, decoupled_weight_decay)
    if status == c.OK:
        return
    (param, grad), o = _checks.call(
        {"param": param, "grad": grad},
        {"lr": lr, "weight_decay": weight_decay, "maximize": maximize,
         "decoupled_weight_decay": decoupled_weight_decay})
    status = try_sgd(param, grad, o["lr"], o["weight_decay"], o["maximize"], o["decoupled_weight_decay"])
    if status != c.OK:
        refuse(status)


cdef int prepare_momentum(prepared *how, lr, momentum, dampening, nesterov, weight_decay, maximize, form,
                          decoupled_weight_decay) noexcept:
    cdef c.momentum_args args = c.momentum_args(
        sizeof(c.momentum_args), real(lr), real(momentum), real(dampening), real(weight_decay), flag(nesterov),
        flag(maximize), flag(decoupled_weight_decay), form_of(form))
    if (args.nesterov | args.maximize | args.decoupled_weight_decay | args.form) < 0:
        return REFUSED
    return gdm_prepare_momentum(&args, how)


cdef int try_momentum(param, velocity, grad, lr, momentum, dampening, nesterov, weight_decay, maximize, form,
                      decoupled_weight_decay) noexcept:
    cdef prepared how
    cdef PyObject *arrays[3]
    arrays[:] = [<PyObject *>param, <PyObject *>grad, <PyObject *>velocity]
    cdef int status = prepare_momentum(&how, lr, momentum, dampening, nesterov, weight_decay, maximize, form,
                                       decoupled_weight_decay)
    return run(RULE_momentum, 3, arrays, &how) if status == c.OK else status


def momentum(param, velocity, grad, *, lr, momentum=0.9, dampening=0.0, nesterov=False, weight_decay=0.0,
             maximize=False, form="torch", decoupled_weight_decay=False):
    """Gradient descent with momentum, heavy ball or Nesterov, in place.

    The function has no memory: it takes the velocity it is given (zeros, to begin with).

    Parameters
    ----------
    param : array of float32 or float64, any shape
        The parameter θ; overwritten. Contiguous (C or Fortran order), aligned and writable. A NumPy array, or anything
        else with the buffer protocol.
    velocity : array like ``param``
        The velocity v; overwritten.
    grad : array like ``param``
        The gradient g at ``param``; only read, and may be read-only.
    lr : float
        The learning rate η, finite and not negative. No unit of its own: that of ``param`` over that of ``grad``.
    momentum : float, default 0.9
        μ, in [0, 1): the share of the velocity that is kept from step to step.
    dampening : float, default 0
        τ, in [0, 1]: the gradient enters the velocity times ``1 - dampening``; ``dampening=momentum`` makes the
        velocity an exponential moving average. Only with ``form="torch"`` and without ``nesterov``.
    nesterov : bool, default False
        Step to where the velocity is about to lead. Needs ``momentum > 0``.
    weight_decay : float, default 0
        The weight decay λ, finite and not negative: ``weight_decay * param`` is added to the gradient.
    maximize : bool, default False
        Walk up the gradient instead of down.
    form : {"torch", "classic"}, default "torch"
        Whether the learning rate scales the whole velocity when it is applied (PyTorch, optax, MLX) or each gradient
        when it enters (the textbook, Keras, scikit-learn). The same path as long as ``lr`` does not change.
    decoupled_weight_decay : bool, default False
        Multiply ``param`` by ``1 - lr * weight_decay`` first, and leave the gradient alone (SGDW).

    Raises
    ------
    TypeError
        For what is no buffer, another dtype, byte-swapped data, or an option of the wrong type.
    ValueError
        If shapes, dtypes or memory orders differ; a buffer is not contiguous, misaligned, or read-only; or an option
        is outside its range or does not go with another one.
    gdm.OverlapError
        If two of the arrays share memory.

    After an exception ``param`` and ``velocity`` are as they were.

    Notes
    -----
    The formula, in the order it is rounded, each operation once::

        g = -grad if maximize else grad
        g = g + weight_decay * param                    # unless decoupled_weight_decay, or weight_decay is 0
        param = (1 - lr * weight_decay) * param         # if decoupled_weight_decay

        # form="torch"
        velocity = momentum * velocity + (1 - dampening) * g
        param = param - lr * velocity
        param = param - lr * (g + momentum * velocity)  # instead, if nesterov

        # form="classic"
        velocity = momentum * velocity - lr * g
        param = param + velocity
        param = param + (momentum * velocity - lr * g)  # instead, if nesterov

    Sources: B. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964; Y. Nesterov, "A method
    of solving a convex programming problem with convergence rate O(1/k²)", 1983; I. Sutskever et al., "On the
    importance of initialization and momentum in deep learning", 2013; decoupled decay: I. Loshchilov and F. Hutter,
    "Decoupled weight decay regularization", 2019.

    Examples
    --------
    >>> import numpy as np, gdm
    >>> theta, v = np.array([1.0, 2.0]), np.zeros(2)
    >>> for _ in range(2):
    ...     gdm.momentum(theta, v, np.array([0.5, -0.5]), lr=0.5, momentum=0.5)
    >>> theta
    array([0.375, 2.625])
    >>> v
    array([ 0.75, -0.75])
    """
    if use_reference:
        reference.momentum(param, velocity, grad, lr=lr, momentum=momentum, dampening=dampening, nesterov=nesterov,
                           weight_decay=weight_decay, maximize=maximize, form=form,
                           decoupled_weight_decay=decoupled_weight_decay)
        return
    cdef int status = try_momentum(param, velocity, grad, lr, momentum, dampening, nesterov, weight_decay, maximize,
                                   form, decoupled_weight_decay)
    if status == c.OK:
        return
    (param, velocity, grad), o = _checks.call(
        {"param": param, "velocity": velocity, "grad": grad},
        {"lr": lr, "momentum": momentum, "dampening": dampening, "nesterov": nesterov, "weight_decay": weight_decay,
         "maximize": maximize, "form": form, "decoupled_weight_decay": decoupled_weight_decay})
    status = try_momentum(param, velocity, grad, o["lr"], o["momentum"], o["dampening"], o["nesterov"],
                          o["weight_decay"], o["maximize"], o["form"], o["decoupled_weight_decay"])
    if status != c.OK:
        refuse(status)


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
    ``_check_grads(grads)``, which returns a list of arrays after every check, whatever the structure, and
    ``_reference_step(grads)``, a whole step in NumPy.
    """

    cdef plan plan
    cdef list given  # the user's arrays, which may change
    cdef list params  # our views of them, which do not
    cdef list bound  # the gradients bound, or None
    cdef void **bound_at  # where they were then
    cdef bint one, flat
    cdef unsigned busy  # 0, or 1 + the process's generation: a forked child is not in the step its parent was in

    def __dealloc__(self):
        gdm_plan_free(&self.plan)
        PyMem_Free(self.bound_at)

    def _table(self, list given, list params, list groups, size_t group_count, bint one, bint flat):
        """Takes the parameters: the user's arrays, our views of them, and the index of each one's group.

        ``one``: gradients come as a single array; ``flat``: as a plain sequence.
        """
        cdef size_t i
        cdef entry *e
        if self.params is not None:
            raise RuntimeError("there is a table already")
        if gdm_plan_init(&self.plan, group_count, <size_t>len(params)) != c.OK:
            raise MemoryError
        self.given = given
        self.params = params
        for i in range(self.plan.count):
            param = params[i]
            e = &self.plan.entries[i]
            e.buffers[PARAM] = data(<PyObject *>param)
            e.n = length(<PyObject *>param)
            e.group = groups[i]
            e.dtype = F32 if PyArray_TYPE(<PyArrayObject *><PyObject *>param) == cnp.NPY_FLOAT else F64
            e.order = PyArray_FLAGS(<PyArrayObject *><PyObject *>param) & IN_ORDER
        self.bound_at = <void **>PyMem_Calloc(self.plan.count + 1, sizeof(void *))
        if self.bound_at == NULL:
            raise MemoryError
        self.one = one
        self.flat = flat
        self._arrange()

    def _states(self, size_t i, list states):
        """Takes the states of parameter ``i``: arrays like it, which their owner keeps where they are."""
        cdef size_t k
        for k in range(<size_t>len(states)):
            state = states[k]
            self.plan.entries[i].buffers[STATE + k] = data(<PyObject *>state)

    def _arrange(self):
        """To be called when parameters or states have been taken."""
        cdef size_t i
        for i in range(self.plan.count):
            self.plan.entries[i].buffers[GRAD] = NULL  # so that the next gradients are checked against the states
        if gdm_plan_arrange(&self.plan) != c.OK:
            raise MemoryError

    def _configure(self, size_t index, str rule, dict options):
        """Sets a group's rule and options, which have been checked."""
        cdef int status
        cdef dict o = options
        cdef group *group = &self.plan.groups[index]
        if self.plan.groups == NULL or index >= self.plan.group_count:
            raise RuntimeError("there is no such group")
        if rule == "sgd":
            group.rule = RULE_sgd
            status = prepare_sgd(&group.prepared, o["lr"], o["weight_decay"], o["maximize"],
                                 o["decoupled_weight_decay"])
        elif rule == "momentum":
            group.rule = RULE_momentum
            status = prepare_momentum(&group.prepared, o["lr"], o["momentum"], o["dampening"], o["nesterov"],
                                      o["weight_decay"], o["maximize"], o["form"], o["decoupled_weight_decay"])
        else:
            raise RuntimeError(f"there is no rule {rule!r}")
        self.plan.fresh = True
        if status != c.OK:
            refuse(status)

    @property
    def _given(self):
        """The parameters as the user gave them."""
        return self.given

    @property
    def _started(self):
        """For each parameter, whether its states have been through a step."""
        return [bool(self.plan.entries[i].started) for i in range(self.plan.count)]

    @_started.setter
    def _started(self, list flags):
        cdef size_t i
        for i in range(self.plan.count):
            self.plan.entries[i].started = bool(flags[i])
        self.plan.fresh = True

    @property
    def _threads(self):
        """How many threads a step may use; None for what gdm.get_num_threads says."""
        return self.plan.threads or None

    @_threads.setter
    def _threads(self, n):
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
            if data(grad) != e[i].buffers[GRAD] and gdm_plan_overlaps(&self.plan, data(grad), bytes_of(grad)):
                return False
        return True

    cdef list take(self, grads):
        """The gradients as a list of arrays, each checked against its parameter.

        User code may run in here (a mapping's, an iterator's, a buffer's): the parameters are checked after it.
        """
        cdef list items
        if self.one and PyArray_CheckExact(<PyObject *>grads):
            items = [grads]
        elif self.flat and type(grads) is list:
            items = grads
        else:
            items = self._flatten(grads)
        if self.all_in_order(items, True):
            return items
        items = self._check_grads(self._flatten(grads) if items is grads else items)
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
            items = self.take(grads)
            self.check_params()
            for i in range(self.plan.count):
                self.bound_at[i] = data(items_of(<PyObject *>items)[i])
            self.bound = list(items)  # a copy: the caller's list may change
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
            For a gradient that is no buffer, has another dtype, or is byte-swapped.
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
        cdef size_t i, total = 0
        cdef list items
        cdef entry *e
        cdef PyObject *grad
        cdef PyObject **arrays
        cdef c.status status
        self._enter()
        try:
            items = self.bound if grads is None else self.take(grads)
            if items is None:
                raise RuntimeError("no gradients: call step(grads), or bind(grads) first")
            self.check_params()
            arrays = items_of(<PyObject *>items)
            for i in range(self.plan.count):
                e = &self.plan.entries[i]
                grad = arrays[i]
                if grads is None and not is_unchanged(grad, cnp.NPY_ARRAY_ALIGNED, self.bound_at[i], e):
                    self.stale("grads", i)
                e.buffers[GRAD] = data(grad)
                total += e.n
            if use_reference:
                self._reference_step(items)
                return
            if total < GIL_THRESHOLD:
                status = gdm_plan_step(&self.plan)
            else:
                items = list(items)  # keeps them alive whatever another thread does to the caller's list
                with nogil:
                    status = gdm_plan_step(&self.plan)
            if status != c.OK:
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
    cdef const char *name = c.isa()
    return None if name == NULL else name.decode()


def available_isas():
    """The instruction sets that this machine can run, best first."""
    cdef size_t i = 0
    names = []
    while c.available_isa(i) != NULL:
        names.append(c.available_isa(i).decode())
        i += 1
    return names


def set_isa(str name):
    """Uses this instruction set from now on. Returns whether this machine can."""
    return c.set_isa(name.encode()) == c.OK


def get_num_threads():
    """How many threads a step may use."""
    return c.get_num_threads()


def set_num_threads(int n):
    """Sets that. Returns whether it is a possible number."""
    return c.set_num_threads(n) == c.OK


def build_info():
    """How this module was built."""
    return {"version": c.version().decode(), "compiler": GDM_COMPILER.decode(), "flags": GDM_FLAGS.decode()}


def rules():
    """The table of rules (csrc/kernels.def): what each is made of, for tests and benchmarks to enumerate."""
    return {
        gdm_rules[i].name.decode(): {
            "states": gdm_rules[i].state_names.decode().split(),
            "reals": dict(real.split(":") for real in gdm_rules[i].reals.decode().split()),
            "flags": gdm_rules[i].flags.decode().split(),
        }
        for i in range(RULES)
    }


def move_bytes(size_t variant, *arrays):
    """Moves the bytes of an update of these arrays (param, states..., grad), and computes nothing. For benchmarks.

    Returns whether there is such a variant. The arrays, NumPy's, of one size in bytes, hold nonsense afterwards.
    """
    cdef char *buffers[MAX_BUFFERS]
    cdef size_t i, bytes, count = len(arrays)
    cdef bint done
    if not 2 <= count <= MAX_BUFFERS:
        raise ValueError("arrays must be as many as an update has")
    for i in range(count):
        x, first = arrays[i], arrays[0]
        if not (is_usable(<PyObject *>x, WRITABLE) and is_like(<PyObject *>x, <PyObject *>first)):
            raise ValueError("arrays must be floats, writable, contiguous, and all alike")
        buffers[i] = <char *>data(<PyObject *>x)
    bytes = arrays[0].nbytes
    with nogil:
        done = gdm_limit(variant, buffers, count, bytes)
    return done
