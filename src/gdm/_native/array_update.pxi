# Updates of one array whose options change each time: see gdm/optimizer/array_update.py.

cdef class ArrayUpdateCore:
    """The base class of :class:`gdm.optimizer.array_update.ArrayUpdate`, which checks arrays and options in Python."""

    cdef plan *plan  # of one entry
    cdef readonly str rule
    cdef int number  # of the rule
    cdef readonly list arrays  # param, grad, the states, and the average if there is one
    cdef readonly bint has_average, clears
    cdef seen[MAX_BUFFERS] places
    cdef unsigned busy  # a lock, as that of an optimizer

    def __cinit__(self, str rule, list arrays, bint has_average, bint clears):
        cdef any_args args
        cdef entry_args e
        cdef buffer states[MAX_BUFFERS]
        cdef PyObject *x
        cdef PyObject **items = items_of(<PyObject *>arrays)
        cdef size_t i, index, count = <size_t>len(arrays)
        cdef int status
        self.rule, self.arrays, self.has_average, self.clears = rule, arrays, has_average, clears
        self.number = rule_numbers[rule]
        if not 2 + has_average <= count <= MAX_BUFFERS:
            raise RuntimeError("these are not the arrays of an update")
        for i in range(count):
            x = items[i]
            if not is_usable(x, READABLE) or not is_like(x, items[0]) or not is_inside_base(x, bytes_of(x)):
                raise RuntimeError("the arrays of an update have not been checked")
            self.places[i] = seen_at(x)
            if i >= 2:
                states[i - 2] = buffer_of(x)
        memset(&args, 0, sizeof(args))
        args.size = gdm_rules[self.number].args_size
        memset(&e, 0, sizeof(e))
        e.size, e.lr_factor, e.n = sizeof(e), 1.0, length(items[0])
        e.param, e.grad = buffer_of(items[0]), buffer_of(items[1])
        e.states, e.state_count = states, count - 2 - has_average
        if has_average:
            e.average = states[count - 3]
        status = gdm_plan_create(&self.plan)
        if status == OK:
            status = gdm_plan_add_group(self.plan, <rule_t>self.number, &args, &index)
        if status == OK:
            status = gdm_plan_add(self.plan, &e, &index)
        if status == OK:
            status = gdm_plan_arrange(self.plan)
        if status != OK:
            refuse(status)
        self.plan.entries[0].order = <uint8_t>(PyArray_FLAGS(<PyArrayObject *>items[0]) & CONTIGUOUS)

    def __dealloc__(self):
        gdm_plan_destroy(self.plan)

    cdef bint is_unchanged(self) noexcept:
        """Whether all arrays still are where they were."""
        cdef size_t i
        for i in range(<size_t>len(self.arrays)):
            if not is_unchanged(items_of(<PyObject *>self.arrays)[i], READABLE if i == 1 and not self.clears else WRITABLE,
                                &self.places[i], &self.plan.entries[0]):
                return False
        return True

    cdef int prepare(self, const any_args *args, uint64_t steps, double scale, double average_decay) noexcept:
        """Gives the plan all that the next update depends on."""
        cdef step_args around = self.plan.around
        cdef uint64_t done
        cdef int status = gdm_plan_set_args(self.plan, 0, args)
        if status == OK and (has_other_bits(scale, around.scale) or average_decay != around.average_decay
                             or self.clears != around.clear_grads):
            around.scale, around.average_decay, around.clear_grads = scale, average_decay, self.clears
            status = gdm_plan_set_step_args(self.plan, &around)
        if status == OK:
            gdm_plan_get_progress(self.plan, 0, &done, NULL)
            if done != steps:
                status = gdm_plan_set_progress(self.plan, 0, steps, NULL)
        return status

    def _run(self, dict options, uint64_t step, double scale, double average_decay):
        """Makes the update, and returns True; or False if something must be checked, and nothing has changed."""
        cdef any_args args
        cdef int status
        if uses_reference() or step < 1 or not read_options(&args, self.number, options):
            return False
        if not try_lock(&self.busy):
            raise RuntimeError("this update is being made by another thread")
        status = REFUSED
        if self.is_unchanged():
            status = self.prepare(&args, step - 1, scale, average_decay)
        if status == OK:
            if self.plan.elements < GIL_THRESHOLD:
                status = gdm_plan_run(self.plan)
            else:
                with nogil:
                    status = gdm_plan_run(self.plan)
        unlock(&self.busy)
        return status == OK

    def step(self, dict options, uint64_t step, double scale, double average_decay):
        if not self._run(options, step, scale, average_decay):
            self._step_checked(options, step, scale, average_decay)


share(ArrayUpdateCore.__dict__["step"])
