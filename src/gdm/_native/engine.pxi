# The engine: a plan in C for the arrays of one specification, and the arrays that it points into.

cdef inline bint is_unchanged(PyObject *x, int flags, const void *place, const entry *e) noexcept nogil:
    """Whether the array still has the memory that was checked at first: address, length, dtype, order, flags; and
    whether the array that it is a view of still has that memory."""
    cdef PyArrayObject *array = <PyArrayObject *>x
    return (data(x) == place and length(x) == e.n
            and PyArray_FLAGS(array) & (flags | CONTIGUOUS) == flags | e.order
            and PyArray_TYPE(array) == (cnp.NPY_FLOAT if e.dtype == F32 else cnp.NPY_DOUBLE)
            and PyArray_ISNOTSWAPPED(array)
            and is_inside_base(x, e.n * (4 if e.dtype == F32 else 8)))


cdef class Engine:
    """Steps the arrays of one specification, which stay the same as long as it exists."""

    cdef plan *plan
    cdef list user_arrays  # as the user gave them, or views of that; they may change
    cdef list sources  # what the user gave, for arrays that are not NumPy's; None if there are none
    cdef list params  # our views of them, which do not
    cdef object held  # what else the plan points into: states and factors of the learning rate
    cdef list bound  # the gradients that are bound, or None
    cdef list bound_sources  # as above, for these
    cdef void **bound_places  # where they were then
    cdef bint is_one_array, is_sequence
    cdef object started_from  # the Progress that the plan's counts go on from: see plan_steps

    def __cinit__(self, specification):
        cdef any_args args
        cdef entry_args e
        cdef buffer states[MAX_STATES]
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
        self.held = all_states, lr_scales
        self.is_one_array, self.is_sequence = specification.is_one_array, specification.is_sequence
        for rule, options, lr in zip(specification.rules, specification.options, specification.lrs, strict=True):
            number = rule_numbers[rule]
            fill(&args, number, options, lr)
            status = gdm_plan_add_group(self.plan, <rule_t>number, &args, &index)
            if status == OK:
                status = gdm_plan_set_group_steps(self.plan, index, progress.group_steps[index])
            if status != OK:
                refuse(status)
        for i in range(<size_t>len(params)):
            x = items_of(<PyObject *>params)[i]
            e.group = groups[i]
            e.n = length(x)
            e.param = buffer_of(x)
            its_states = all_states[i]
            memset(states, 0, sizeof(states))
            for k in range(<size_t>len(its_states)):
                state = its_states[k]
                if state is not None:
                    states[k] = buffer_of(<PyObject *>state)
            e.states = states
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
            self.plan.entries[i].order = <uint8_t>(PyArray_FLAGS(<PyArrayObject *>x) & CONTIGUOUS)
        status = gdm_plan_arrange(self.plan)
        if status != OK:
            refuse(status)
        self.bound_places = <void **>PyMem_Calloc(self.plan.count + 1, sizeof(void *))
        if self.bound_places == NULL:
            raise MemoryError

    def __dealloc__(self):
        gdm_plan_destroy(self.plan)
        PyMem_Free(self.bound_places)

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
        gdm_plan_get_group_steps(self.plan, index, &n)
        return n

    cdef object progress(self):
        cdef size_t i, k
        cdef uint64_t n, before
        cdef double scalars[MAX_SCALARS]
        cdef const rule_info *rule
        cdef list group_steps = [], steps = [], all_scalars = [], begun = []
        cdef tuple its_scalars
        cdef list old_steps = self.started_from.steps, old_begun = self.started_from.begun
        cdef bint was_begun
        for i in range(self.plan.count):
            gdm_plan_get_progress(self.plan, i, &n, scalars)
            before, was_begun = old_steps[i], old_begun[i]
            rule = &gdm_rules[self.plan.groups[self.plan.entries[i].group].rule]
            steps.append(before + (n - self.plan_steps(self.plan.entries[i].group, before, was_begun)))
            its_scalars = ()
            for k in range(rule.scalars):
                its_scalars += (scalars[k],)
            all_scalars.append(its_scalars)
            begun.append(bool(n) if rule.states else was_begun)
        for i in range(self.plan.group_count):
            group_steps.append(self.group_steps(i))
        return Progress(group_steps, steps, all_scalars, begun)

    cdef int set_progress(self, progress) except -1:
        """Sets the progress after a step with the rules in NumPy."""
        cdef size_t i, k
        cdef double scalars[MAX_SCALARS]
        cdef tuple its_scalars
        for i in range(self.plan.count):
            its_scalars = progress.scalars[i]
            for k in range(<size_t>len(its_scalars)):
                scalars[k] = its_scalars[k]
            gdm_plan_set_progress(
                self.plan, i, self.plan_steps(self.plan.entries[i].group, progress.steps[i], progress.begun[i]), scalars)
        self.started_from = progress
        for i in range(self.plan.group_count):
            gdm_plan_set_group_steps(self.plan, i, progress.group_steps[i])
        return 0

    cdef double lr(self, size_t index) noexcept:
        """The learning rate of a group."""
        return self.plan.groups[index].args.any.lr

    cdef bint are_params_unchanged(self, size_t *changed) noexcept:
        """Whether no parameter has changed; else sets ``changed`` to the index of one that has."""
        cdef size_t i
        cdef entry *e = self.plan.entries
        cdef PyObject **params = items_of(<PyObject *>self.user_arrays)
        for i in range(self.plan.count):
            if not is_unchanged(params[i], WRITABLE, e[i].data[PARAM], &e[i]):
                changed[0] = i
                return False
        return True

    cdef bint are_usable(self, list grads, bint exact) noexcept:
        """Whether each parameter has None or a gradient that is valid and shares no memory with what a step writes.
        ``exact``: subclasses of NumPy's array do not count as valid."""
        cdef size_t i
        cdef entry *e = self.plan.entries
        cdef PyObject **params = items_of(<PyObject *>self.params)
        cdef PyObject **items = items_of(<PyObject *>grads)
        cdef PyObject *grad
        if <size_t>len(grads) != self.plan.count:
            return False
        for i in range(self.plan.count):
            grad = items[i]
            if grad == <PyObject *>None:
                if self.is_one_array:
                    return False
                continue
            if not (is_usable(grad, READABLE) or not exact and PyArray_Check(grad)):
                return False
            if not is_like(grad, params[i]) or not is_inside_base(grad, bytes_of(grad)):
                return False
            if data(grad) != e[i].data[GRAD] and gdm_plan_overlaps(self.plan, data(grad), bytes_of(grad)):
                return False
        return True
