# The engine: a plan in C for the arrays of one specification, and the arrays that it points into.

cdef struct seen:
    # Where an array was when it was checked, and NumPy's number for its dtype.
    void *data
    int kind


cdef inline seen seen_at(PyObject *x) noexcept nogil:
    cdef seen found
    found.data, found.kind = data(x), PyArray_TYPE(<PyArrayObject *>x)
    return found


cdef inline bint is_unchanged(PyObject *x, int flags, const seen *before, const entry *e) noexcept nogil:
    """Whether the array still has the memory that was checked at first: address, length, dtype, order, flags; and
    whether the array that it is a view of still has that memory."""
    cdef PyArrayObject *array = <PyArrayObject *>x
    return (data(x) == before.data and length(x) == e.n
            and PyArray_FLAGS(array) & (flags | CONTIGUOUS) == flags | e.order & CONTIGUOUS
            and PyArray_TYPE(array) == before.kind
            and PyArray_ISNOTSWAPPED(array)
            and is_inside_base(x, e.n * size_of(dtype_of_kind(before.kind))))


cdef struct counts:
    # How far a plan is: for each parameter, and for each group.
    uint64_t *steps
    uint64_t *group_steps
    double *scalars  # MAX_SCALARS for each parameter
    uint64_t updates, skipped
    double grad_norm
    bint has_norm, evaluating


cdef enum:
    DTYPE_SHIFT = 4  # entry.order: the memory order of a parameter, and from this bit on the dtype of its gradient


cdef class Engine:
    """Steps the arrays of one specification, which stay the same as long as it exists.

    Whoever calls it holds the optimizer's lock, but for ``progress`` and ``group_steps``: any thread may call these, at
    any time.
    """

    cdef plan *plan
    cdef unsigned counting  # a lock: whoever holds it may change, or may read, what ``progress`` returns
    cdef list user_arrays  # as the user gave them, or views of that; they may change
    cdef list sources  # what the user gave, for arrays that are not NumPy's; None if there are none
    cdef list params  # our views of them, which do not
    cdef object held  # what else the plan points into: states and factors of the learning rate
    cdef list bound  # the gradients that are bound, or None
    cdef list bound_sources  # as above, for these
    cdef seen *bound_places  # where they were then
    cdef seen *param_places
    cdef list copies  # as user_arrays, or None; None without copies
    cdef seen *copy_places
    cdef bint is_one_array, is_sequence
    cdef bint prepares  # some rule's steps need a preparation
    cdef bint has_norm  # a step has been made, which may have set plan.grad_norm
    cdef bint uint16  # an array of uint16 holds the bits of bfloat16
    cdef object started_from  # the Progress that the plan's counts go on from: see plan_steps

    def __cinit__(self, specification):
        cdef any_args args
        cdef entry_args e
        cdef buffer states[MAX_STATES]
        cdef float *scales[MAX_STATES]
        cdef double scalars[MAX_SCALARS]
        cdef PyObject *x
        cdef size_t i, k, index
        cdef int number, status = gdm_plan_create(&self.plan)
        cdef list params = specification.params, groups = specification.group_of
        cdef list all_states = specification.states, lr_scales = specification.lr_scales
        cdef list lr_factors = specification.lr_factors
        progress = specification.progress
        self.started_from = progress
        memset(&e, 0, sizeof(e))
        e.size = sizeof(e)
        cdef list steps = progress.steps, all_scalars = progress.scalars, begun = progress.begun
        cdef list its_states
        cdef tuple its_scalars
        if status != OK:
            refuse(status)
        self.user_arrays, self.sources = specification.user_arrays, some(specification.sources)
        self.params = params
        self.held = all_states, lr_scales, specification.companions
        self.copies, self.uint16 = some(specification.user_copies), specification.uint16
        self.is_one_array, self.is_sequence = specification.is_one_array, specification.is_sequence
        for rule, options, lr in zip(specification.rules, specification.options, specification.lrs, strict=True):
            number = rule_numbers[rule]
            fill(&args, number, options, lr)
            status = gdm_plan_add_group(self.plan, <rule_t>number, &args, &index)
            if status == OK:
                status = gdm_plan_set_group_steps(self.plan, index, progress.group_steps[index])
            if status != OK:
                refuse(status)
            self.prepares = self.prepares or self.plan.groups[index].choice.prepare != 0
        self.bound_places = <seen *>PyMem_Calloc(3 * <size_t>len(params) + 1, sizeof(seen))
        if self.bound_places == NULL:
            raise MemoryError
        self.param_places = self.bound_places + len(params)
        self.copy_places = self.param_places + len(params)
        for i in range(<size_t>len(params)):
            x = items_of(<PyObject *>params)[i]
            self.param_places[i] = seen_at(items_of(<PyObject *>self.user_arrays)[i])
            e.group = groups[i]
            e.n = length(x)
            e.param = buffer_of(x)
            its_states = all_states[i]
            memset(states, 0, sizeof(states))
            memset(scales, 0, sizeof(scales))
            its_scales, low_bits, average, copy = specification.companions[i]
            for k in range(<size_t>len(its_states)):
                state = its_states[k]
                if state is not None:
                    states[k] = buffer_of(<PyObject *>state)
                if its_scales[k] is not None:
                    scales[k] = <float *>data(<PyObject *>its_scales[k])
            e.states, e.state_scales = states, scales
            e.low_bits = NULL if low_bits is None else <uint16_t *>data(<PyObject *>low_bits)
            e.average.data = e.copy.data = NULL
            if average is not None:
                e.average = buffer_of(<PyObject *>average)
            if copy is not None:
                e.copy = buffer_of(<PyObject *>copy)
                self.copy_places[i] = seen_at(items_of(<PyObject *>self.copies)[i])
            e.state_count = <size_t>len(its_states)
            e.lr_scale.data = NULL
            if lr_scales[i] is not None:
                e.lr_scale = buffer_of(<PyObject *>lr_scales[i])
            e.lr_factor = lr_factors[i]
            status = gdm_plan_add(self.plan, &e, &index)
            if status == OK:
                its_scalars = all_scalars[i]
                for k in range(<size_t>len(its_scalars)):
                    scalars[k] = its_scalars[k]
                status = gdm_plan_set_progress(self.plan, i, self.plan_steps(e.group, steps[i], begun[i]), scalars)
            if status != OK:
                refuse(status)
            self.plan.entries[i].order = <uint8_t>(PyArray_FLAGS(<PyArrayObject *>x) & CONTIGUOUS
                                                   | self.plan.entries[i].dtype << DTYPE_SHIFT)
        status = gdm_plan_arrange(self.plan)
        if status != OK:
            refuse(status)
        gdm_plan_set_updates(self.plan, progress.updates, progress.skipped)
        gdm_plan_set_mode(self.plan, EVAL if progress.evaluating else TRAIN)
        self.set_grad_norm(progress.grad_norm)
        self.set_around(specification.around)

    def __dealloc__(self):
        gdm_plan_destroy(self.plan)
        PyMem_Free(self.bound_places)

    cdef int set_around(self, around) except -1:
        """Sets what steps do around the rule."""
        cdef step_args args
        cdef int status
        memset(&args, 0, sizeof(args))
        args.size, args.scale = sizeof(args), self.plan.around.scale
        args.max_grad_norm = around.max_grad_norm or 0.0
        args.max_grad_value = around.max_grad_value or 0.0
        args.average_decay = around.average or 0.0
        args.average_correction, args.clear_grads = around.average_correction, around.clear_grads
        args.nonfinite = _specification.NONFINITE.index(around.nonfinite)
        args.rounding = _specification.ROUNDINGS.index(around.rounding)
        args.seed = around.seed
        if not memcmp(&args, &self.plan.around, sizeof(args)):
            return 0
        wait_for_lock(&self.counting)
        status = gdm_plan_set_step_args(self.plan, &args)
        unlock(&self.counting)
        if status != OK:
            refuse(status)
        return 0

    cdef uint64_t plan_steps(self, size_t group, uint64_t steps, bint begun) noexcept:
        """The count of steps that the plan is given for a parameter.

        In the plan, an entry's first step is the one at count 0. A parameter's states may begin later, if momentum is
        switched on after some steps, or earlier, since PyTorch does not count the steps of its SGD. If a rule does not
        read the number of the step, the count has no other effect, so the plan's count may differ from ours.
        """
        if gdm_rules[self.plan.groups[group].rule].step or begun == (steps > 0):
            return steps
        return 1 if begun else 0

    cdef uint64_t group_steps(self, size_t index) noexcept:
        cdef uint64_t n = 0
        wait_for_lock(&self.counting)
        gdm_plan_get_group_steps(self.plan, index, &n)
        unlock(&self.counting)
        return n

    cdef object progress(self):
        """The counts and scalars of this moment: a Progress. If another thread is in a pass, waits for its end."""
        cdef size_t count = self.plan.count, groups = self.plan.group_count
        cdef counts found
        cdef uint64_t *steps = <uint64_t *>PyMem_Malloc((count + groups + 1) * sizeof(uint64_t))
        cdef double *scalars = <double *>PyMem_Malloc((count * MAX_SCALARS + 1) * sizeof(double))
        try:
            if steps == NULL or scalars == NULL:
                raise MemoryError
            found.steps, found.group_steps, found.scalars = steps, steps + count, scalars
            wait_for_lock(&self.counting)
            self.copy_counts(&found)  # to objects later: a finalizer that runs then may call this
            before = self.started_from
            unlock(&self.counting)
            return self.progress_since(before, &found)
        finally:
            PyMem_Free(steps)
            PyMem_Free(scalars)

    cdef void copy_counts(self, counts *out) noexcept:
        cdef size_t i
        for i in range(self.plan.count):
            gdm_plan_get_progress(self.plan, i, &out.steps[i], &out.scalars[i * MAX_SCALARS])
        for i in range(self.plan.group_count):
            gdm_plan_get_group_steps(self.plan, i, &out.group_steps[i])
        out.updates, out.skipped, out.evaluating = self.plan.updates, self.plan.skipped, self.plan.mode == EVAL
        out.grad_norm = self.plan.grad_norm
        out.has_norm = out.grad_norm == out.grad_norm or self.has_norm and self.plan.around.max_grad_norm > 0

    cdef object progress_since(self, before, const counts *found):
        """The Progress of these counts of a plan that went on from another Progress."""
        cdef size_t i, k
        cdef uint64_t old
        cdef const rule_info *rule
        cdef list group_steps = [], steps = [], all_scalars = [], begun = []
        cdef tuple its_scalars
        cdef list old_steps = before.steps, old_begun = before.begun
        cdef bint was_begun
        for i in range(self.plan.count):
            old, was_begun = old_steps[i], old_begun[i]
            rule = &gdm_rules[self.plan.groups[self.plan.entries[i].group].rule]
            steps.append(old + (found.steps[i] - self.plan_steps(self.plan.entries[i].group, old, was_begun)))
            its_scalars = ()
            for k in range(rule.scalars):
                its_scalars += (found.scalars[i * MAX_SCALARS + k],)
            all_scalars.append(its_scalars)
            begun.append(bool(found.steps[i]) if rule.states else was_begun)
        for i in range(self.plan.group_count):
            group_steps.append(found.group_steps[i])
        return Progress(group_steps, steps, all_scalars, begun, found.updates, found.skipped,
                        found.grad_norm if found.has_norm else None, found.evaluating)

    cdef int set_progress(self, progress) except -1:
        """Sets the progress after a step with the rules in NumPy. Only numbers are read here, and no objects made."""
        cdef size_t i, k
        cdef double scalars[MAX_SCALARS]
        cdef tuple its_scalars
        wait_for_lock(&self.counting)
        try:
            for i in range(self.plan.count):
                its_scalars = progress.scalars[i]
                for k in range(<size_t>len(its_scalars)):
                    scalars[k] = its_scalars[k]
                gdm_plan_set_progress(
                    self.plan, i, self.plan_steps(self.plan.entries[i].group, progress.steps[i], progress.begun[i]),
                    scalars)
            self.started_from = progress
            for i in range(self.plan.group_count):
                gdm_plan_set_group_steps(self.plan, i, progress.group_steps[i])
            gdm_plan_set_updates(self.plan, progress.updates, progress.skipped)
            self.set_grad_norm(progress.grad_norm)
        finally:
            unlock(&self.counting)
        return 0

    cdef int set_grad_norm(self, norm) except -1:
        self.plan.grad_norm = NAN if norm is None else norm
        self.has_norm = norm is not None
        return 0

    cdef double lr(self, size_t index) noexcept:
        """The learning rate of a group."""
        return self.plan.groups[index].args.any.lr

    # ---- passes over memory: all that change counts ----

    cdef inline int run(self, bint alone) noexcept:
        """Makes a step; ``alone``: without releasing the GIL."""
        cdef int status
        if alone and not FREE_THREADED:
            status = gdm_plan_run(self.plan)
            self.has_norm = self.has_norm or status == OK
            return status
        wait_for_lock(&self.counting)
        if alone:
            status = gdm_plan_run(self.plan)
        else:
            with nogil:
                status = gdm_plan_run(self.plan)
        self.has_norm = self.has_norm or status == OK
        unlock(&self.counting)
        return status

    cdef int run_preparation(self) noexcept:
        cdef int status
        wait_for_lock(&self.counting)
        with nogil:
            status = gdm_plan_run_preparation(self.plan)
        unlock(&self.counting)
        return status

    cdef int run_swap(self, mode_t to) noexcept:
        cdef int status
        wait_for_lock(&self.counting)
        with nogil:
            status = gdm_plan_run_swap(self.plan, to)
        unlock(&self.counting)
        return status

    cdef void set_mode(self, mode_t to) noexcept:
        """Counts a swap that NumPy has made."""
        wait_for_lock(&self.counting)
        gdm_plan_set_mode(self.plan, to)
        unlock(&self.counting)

    # ---- has anything changed? ----

    cdef bint are_params_unchanged(self, size_t *changed) noexcept:
        """Whether no parameter has changed; else sets ``changed`` to the index of one that has."""
        cdef size_t i
        cdef entry *e = self.plan.entries
        cdef PyObject **params = items_of(<PyObject *>self.user_arrays)
        for i in range(self.plan.count):
            if not is_unchanged(params[i], WRITABLE, &self.param_places[i], &e[i]):
                changed[0] = i
                return False
        return True

    cdef bint are_copies_unchanged(self, size_t *changed) noexcept:
        """The same for the copies."""
        cdef size_t i
        cdef PyObject *copy
        for i in range(self.plan.count):
            copy = items_of(<PyObject *>self.copies)[i]
            if copy != <PyObject *>None and not is_unchanged(copy, WRITABLE, &self.copy_places[i],
                                                             &self.plan.entries[i]):
                changed[0] = i
                return False
        return True

    cdef inline void set_grad(self, size_t i, PyObject *grad) noexcept:
        """Sets the gradient of a step: an array that has been checked, or NULL."""
        cdef entry *e = &self.plan.entries[i]
        e.data[GRAD] = NULL if grad == NULL else data(grad)
        if grad != NULL and e.order >> DTYPE_SHIFT != dtype_of(grad):
            e.order = <uint8_t>(e.order & CONTIGUOUS | dtype_of(grad) << DTYPE_SHIFT)
            self.plan.details[i].dtypes[GRAD] = <uint8_t>dtype_of(grad)
            e.tiled = gdm_is_tiled(e, &self.plan.details[i])

    cdef inline int grad_flags(self) noexcept:
        return WRITABLE if self.plan.around.clear_grads else READABLE

    cdef bint are_usable(self, list grads, bint exact) except -1:
        """Whether each parameter has None or a gradient that is valid and shares no memory with what a step writes.
        ``exact``: only NumPy's own arrays count as valid, and uint16 only if it holds the bits of bfloat16."""
        cdef size_t i
        cdef entry *e = self.plan.entries
        cdef PyObject **params = items_of(<PyObject *>self.params)
        cdef PyObject **items = items_of(<PyObject *>grads)
        cdef PyObject *grad
        cdef int dtype, flags = self.grad_flags()
        cdef size_t bytes
        if <size_t>len(grads) != self.plan.count:
            return False
        for i in range(self.plan.count):
            grad = items[i]
            if grad == <PyObject *>None:
                if self.is_one_array:
                    return False
                continue
            if not (is_floating(grad, flags, self.uint16) or not exact and PyArray_Check(grad)):
                return False
            if not is_gradient_for(grad, params[i]):
                return False
            dtype = dtype_of(grad)
            bytes = e[i].n * size_of(dtype)
            if not is_inside_base(grad, bytes):
                return False
            if ((data(grad) != e[i].data[GRAD] or e[i].order >> DTYPE_SHIFT != dtype)
                    and gdm_plan_overlaps(self.plan, data(grad), bytes)):
                return False
        return not self.plan.around.clear_grads or not any_overlap(grads)
