# The base class of optimizers: the lock, the step, and the one place that applies a change.

cdef enum:
    FIRST_BLOCK = 32  # how many learning rates a built-in schedule computes at first
    BLOCK = 512  # and each time after that


cdef class _Schedule:
    """The learning rates of one group that has a schedule."""

    cdef size_t group
    cdef object function
    cdef object block  # a NumPy array of the learning rates from `first` on
    cdef const double *rates
    cdef uint64_t first, count


cdef class OptimizerCore:
    """The base class of :class:`gdm.optimizer.Optimizer`.

    A subclass checks what it is given in Python, and hands it over in ``_put_in_place`` or ``_configure``. It provides
    ``_flatten(grads)``, which returns a list; ``_check_grads(grads)``, which returns arrays and their sources, or None
    for a NumPy array; ``_label(what, i)``;
    ``_scheduled_rates(group, schedule, step, count)`` and ``_check_rate(group, rate)``; ``_numpy_step(grads, lrs,
    progress, scale)``, a whole step in NumPy; ``_refuse_nonfinite(grads)``, which raises;
    ``_finish_preparation(grads)``, which turns what a preparation wrote into what the step reads; and
    ``_set_for_all_groups(name, value)``.
    """

    # Only the thread that holds the lock replaces these two, and in a critical section; so any other thread reads them
    # in one.
    cdef Engine engine
    cdef object snapshot
    cdef list schedules  # of the groups whose learning rate is not a number
    cdef int thread_count  # that a step may use; 0: the result of gdm_get_num_threads. A flag of locks.pxi
    cdef unsigned busy  # the lock

    cdef int require(self) except -1:
        if self.engine is None:
            raise RuntimeError("this optimizer has not been initialised")
        return 0

    cdef Engine present_engine(self):
        """The engine, for a thread that does not hold the lock."""
        cdef Engine engine
        with cython.critical_section(self):
            engine = self.engine
        if engine is None:
            raise RuntimeError("this optimizer has not been initialised")
        return engine

    @property
    def _snapshot(self):
        """What the optimizer consists of; None before it is initialised."""
        with cython.critical_section(self):
            snapshot = self.snapshot
        return snapshot

    # ---- the lock, which is taken and released here, where no interrupt stops the code in between ----

    cdef int lock(self) except -1:
        if not try_lock(&self.busy):
            raise RuntimeError("this optimizer is already in the middle of a step")
        return 0

    def _exclusively(self, function, *args):
        """Calls the function while no step and no other change runs."""
        self.lock()
        try:
            return function(*args)
        finally:
            unlock(&self.busy)

    def _hold(self):
        """Locks the optimizer until ``_release()``."""
        self.present_engine()
        self.lock()

    def _release(self):
        unlock(&self.busy)

    # ---- changes: everything that can fail comes first; then there is only C code, which no interrupt stops ----

    def _put_in_place(self, Engine engine not None, snapshot, list options, list writes):
        """Replaces the present snapshot and engine by these.

        ``options`` holds records of groups, each with its hyperparameters from then on; ``writes`` holds arrays, each
        with what is copied into it: an array of the same dtype, size and memory order.
        """
        cdef Engine before = self.engine
        cdef size_t i
        cdef list schedules = [], replaced = []
        cdef PyObject *target
        cdef PyObject *source
        cdef bint rebind = before is not None and before.bound is not None and self.snapshot.layout is snapshot.layout
        for i, (record, of_group) in enumerate(options):
            add_schedule(schedules, i, of_group)
        # The last references to these: finalizers of the user's run when all is in place.
        replaced.append((self.snapshot, self.schedules))
        for record, _ in options:
            replaced.append(record.options)
        for array, value in writes:
            target, source = <PyObject *>array, <PyObject *>value
            if not (is_stored(target, WRITABLE) and is_stored(source, READABLE) and is_like(source, target)):
                raise RuntimeError("an array that is to be copied does not fit its state")
        if rebind:
            memcpy(engine.bound_places, before.bound_places, before.plan.count * sizeof(seen))
            engine.bound, engine.bound_sources = before.bound, before.bound_sources
        # Nothing fails from here on.
        for array, value in writes:
            memcpy(data(<PyObject *>array), data(<PyObject *>value), bytes_of(<PyObject *>array))
        for record, of_group in options:
            record.options = of_group
        with cython.critical_section(self):
            self.engine = engine
            self.snapshot = snapshot
        self.schedules = schedules

    def _configure(self, list changes):
        """Sets hyperparameters that need no other states: index, record, hyperparameters and ``lr`` of each group."""
        cdef any_args *args
        cdef any_args before
        cdef size_t i, index, count = <size_t>len(changes)
        cdef plan *plan
        cdef int status = OK
        self.require()
        plan = self.engine.plan
        indices = {change[0] for change in changes}
        cdef list schedules = [], replaced = [self.schedules]
        for schedule in self.schedules:
            if (<_Schedule>schedule).group not in indices:
                schedules.append(schedule)
        for index, record, options, _ in changes:
            add_schedule(schedules, index, options)
            replaced.append(record.options)  # finalizers of the user's run when all is in place
        args = <any_args *>PyMem_Malloc((count + 1) * sizeof(any_args))
        if args == NULL:
            raise MemoryError
        try:
            for i in range(count):
                index, _, options, lr = changes[i]
                if index >= plan.group_count:
                    raise RuntimeError("there is no such group")
                fill(&args[i], plan.groups[index].rule, options, lr)
            for i in range(count):
                index = changes[i][0]
                before = plan.groups[index].args
                status = gdm_plan_set_args(plan, index, &args[i])
                args[i] = before
                if status != OK:
                    while i > 0:  # undo what has been set
                        i -= 1
                        gdm_plan_set_args(plan, changes[i][0], &args[i])
                    break
            if status != OK:
                refuse(status)
            for _, record, options, _ in changes:
                record.options = options
            self.schedules = schedules
        finally:
            PyMem_Free(args)

    def _try_set_lr(self, record, value):
        """Sets the learning rate of one group, or with None of all groups, in simple cases: a valid float, and no
        schedule. Returns whether it did."""
        if not PyFloat_CheckExact(value):
            return False
        self.lock()  # finalizers of the user's may run in here
        try:
            if self.engine is None or self.schedules:
                return False
            return self.set_lr(record, value)
        finally:
            unlock(&self.busy)

    cdef bint set_lr(self, record, value) except -1:
        cdef list records, options = []
        cdef size_t i, first
        cdef double lr = value
        cdef plan *plan = self.engine.plan
        if record is None:
            records, first = self.snapshot.records, 0
        else:
            index = self.snapshot.index_of.get(record)
            if index is None:
                return False
            records, first = [record], index
        if not records:
            return False
        for each in records:
            options.append({**each.options, "lr": value})
        for i in range(<size_t>len(records)):
            if gdm_plan_set_lr(plan, first + i, lr) != OK:
                while i > 0:
                    i -= 1
                    gdm_plan_set_lr(plan, first + i, <double>records[i].options["lr"])
                return False
        for i in range(<size_t>len(records)):
            records[i].options = options[i]
        return True

    def __setattr__(self, str name, value):
        if name == "lr" and self._try_set_lr(None, value):
            return
        if name.startswith("_") or hasattr(type(self), name):
            PyObject_GenericSetAttr(self, name, value)
        else:
            self._set_for_all_groups(name, value)

    # ---- progress ----

    def _progress(self):
        """The counts of steps and the scalars of the groups and parameters: a Progress."""
        return self.present_engine().progress()

    def _group_steps(self, size_t index):
        """How many steps have been made since this group was added."""
        cdef Engine engine = self.present_engine()
        if index >= engine.plan.group_count:
            raise RuntimeError("there is no such group")
        return engine.group_steps(index)

    @property
    def _threads(self):
        """How many threads a step may use; None for the result of gdm.get_num_threads."""
        self.present_engine()
        return get_flag(&self.thread_count) or None

    @_threads.setter
    def _threads(self, n):
        self.present_engine()
        set_flag(&self.thread_count, 0 if n is None else n)

    def _any_overlap(self, list arrays):
        """Whether two of these contiguous arrays share memory."""
        return any_overlap(arrays)

    # ---- gradients ----

    cdef int stale(self, str what, size_t i) except -1:
        raise StaleBufferError(
            f"{self._label(what, i)} has moved, been resized, or changed in another way since it was bound")

    cdef int check_params(self) except -1:
        cdef size_t i
        if self.engine.sources is not None:
            _foreign.look_again(self.engine.user_arrays, self.engine.sources)
        if not self.engine.are_params_unchanged(&i):
            self.stale("params", i)
        if self.engine.copies is not None and not self.engine.are_copies_unchanged(&i):
            self.stale("copies", i)
        return 0

    cdef list checked_grads(self, grads, bint own, list sources):
        """The gradients as a list of arrays, each checked against its parameter; ``own``: not the caller's list.

        ``sources``: a list to which what the arrays come from is added, unless all are NumPy's; or None.

        This may run user code (of a mapping, an iterator or a buffer). The parameters are checked after that. No user
        code may run between here and the end of the step.
        """
        cdef list items, arrays
        cdef Engine engine = self.engine
        cdef bint in_list = engine.is_sequence and type(grads) is list
        if engine.is_one_array and PyArray_CheckExact(<PyObject *>grads):
            items = [grads]
        elif in_list:
            items = list(grads) if own else grads
        else:
            items = self._flatten(grads)
        if engine.are_usable(items, True):
            return items
        if in_list:
            items = self._flatten(items)
        if sources is None:
            arrays = _foreign.views(items)
            if engine.are_usable(arrays, True):
                return arrays
        self.check_params()  # first: a changed parameter is not an error of the gradients
        try:
            arrays, found = self._check_grads(items)
        except OverlapError:
            self.check_params()  # where a parameter was, there may be another array now
            raise
        if self.engine is not engine or not engine.are_usable(arrays, False):
            raise StaleBufferError("grads changed while they were being checked")
        if sources is not None:
            sources.extend(found)
        return arrays

    def bind(self, grads):
        """Keeps the arrays that every later ``step()`` reads its gradients from.

        Parameters
        ----------
        grads : in the structure of ``params``
            One array for each parameter, of its shape and memory order, contiguous and aligned; or None, which leaves the parameter out of every step. The arrays are kept alive; put each new gradient into them
            (``grad[...] = ...``). A tensor that becomes ``.grad`` later is another array: in PyTorch,
            ``zero_grad(set_to_none=False)`` keeps those that were bound.

        Raises
        ------
        TypeError, ValueError, gdm.OverlapError
            As :meth:`step` does. What was bound before stays bound.
        """
        cdef size_t i
        cdef list items, sources = []
        cdef PyObject *grad
        cdef Engine engine
        self.lock()
        try:
            self.require()
            engine = self.engine
            items = self.checked_grads(grads, True, sources)  # True: the caller's list may change
            self.check_params()
            before = engine.bound
            for i in range(engine.plan.count):
                grad = items_of(<PyObject *>items)[i]
                if grad != <PyObject *>None:
                    engine.bound_places[i] = seen_at(grad)
            engine.bound, engine.bound_sources = items, some(sources)
        finally:
            unlock(&self.busy)

    # ---- the step ----

    cdef int set_scheduled_rates(self) except -1:
        """Sets the learning rates that schedules give for this step. A built-in schedule computes a block of them."""
        cdef _Schedule schedule
        cdef plan *plan = self.engine.plan
        cdef uint64_t step
        for schedule in self.schedules:
            step = self.engine.group_steps(schedule.group)
            if step < schedule.first or step - schedule.first >= schedule.count:
                schedule.count = 0
                block = self._scheduled_rates(schedule.group, schedule.function, step,
                                              FIRST_BLOCK if schedule.block is None else BLOCK)
                if not is_usable(<PyObject *>block, READABLE) or PyArray_TYPE(<PyArrayObject *><PyObject *>block) != cnp.NPY_DOUBLE:
                    raise RuntimeError("a block of learning rates is not an array of float64")
                schedule.block = block
                schedule.rates = <const double *>data(<PyObject *>block)
                schedule.first, schedule.count = step, length(<PyObject *>block)
            if gdm_plan_set_lr(plan, schedule.group, schedule.rates[step - schedule.first]) != OK:
                self._check_rate(schedule.group, schedule.rates[step - schedule.first])
                raise RuntimeError("a learning rate from a schedule was refused")
        return 0

    def _set_around(self, around):
        """Sets what steps do around the rule: see Around in _specification.py."""
        self.require()
        self.engine.set_around(around)

    cdef int reference_step(self, list grads, double scale) except -1:
        """A step with the rules in NumPy: it computes everything first; then C code alone writes it."""
        cdef size_t i
        cdef Engine engine = self.engine
        cdef list lrs = []
        for i in range(engine.plan.group_count):
            lrs.append(engine.lr(i))
        writes, progress = self._numpy_step(grads, lrs, engine.progress(), scale)
        self.check_params()  # a rule may have called code of the user's
        write_all(writes)
        engine.set_progress(progress)
        return 0

    # ---- the two modes of Schedule-Free methods ----

    def _swap(self, bint evaluate):
        """Puts the averages in the place of the parameters, or the reverse, if that is not yet done."""
        cdef Engine engine
        cdef mode_t to = EVAL if evaluate else TRAIN
        cdef int status
        self.lock()
        try:
            self.require()
            engine = self.engine
            if engine.plan.mode == to:
                return
            self.check_params()
            if uses_reference():
                write_all(self._numpy_swap(evaluate, engine.progress()))
                engine.set_mode(to)
                return
            engine.plan.threads = get_flag(&self.thread_count)
            status = engine.run_swap(to)
            if status != OK:
                refuse(status)
        finally:
            unlock(&self.busy)

    # ---- the gradients of a step, its preparation, and the step ----

    cdef inline int take_grads(self, Engine engine, list items, bint are_bound) except -1:
        """Puts the addresses of the gradients into the plan. Those that are bound may have moved since."""
        cdef size_t i
        cdef entry *e
        cdef PyObject *grad
        cdef PyObject **arrays = items_of(<PyObject *>items)
        for i in range(engine.plan.count):
            e = &engine.plan.entries[i]
            grad = arrays[i]
            if grad == <PyObject *>None:
                e.data[GRAD] = NULL
                continue
            if are_bound and not is_unchanged(grad, engine.grad_flags(), &engine.bound_places[i], e):
                self.stale("grads", i)
            engine.set_grad(i, grad)
        return 0

    cdef int prepare(self, Engine engine, list items, bint are_bound) except -1:
        """Prepares a step for the rules that need it. Code of the user's may run then, so all arrays are checked again.
        Nothing has been written but what only the step reads."""
        cdef int status = engine.run_preparation()
        if status == ERR_NONFINITE:
            self._refuse_nonfinite(items)
        if status != OK:
            refuse(status)
        if engine.plan.was_skipped:
            return 0
        self._finish_preparation(items)
        self.check_params()
        if not are_bound and not engine.are_usable(items, False):
            raise StaleBufferError("grads changed in the middle of the step")
        return self.take_grads(engine, items, are_bound)

    def step(self, grads=None, double scale=1.0):
        """Updates every parameter and its state, in place.

        Parameters
        ----------
        grads : in the structure of ``params``, optional
            The gradients, for this step only; None in the place of one leaves its parameter out: the parameter, its
            states and its count of steps stay as they are. Without ``grads``, those that were bound are read. Each may
            have a dtype of its own: float32, float16 or bfloat16; float64 if its parameter is float64.
        scale : float, default 1
            What all gradients are multiplied by, finite: the reciprocal of the factor of a scaled loss.

        Raises
        ------
        TypeError
            For a gradient that is no such array in the CPU's memory, or is byte-swapped.
        ValueError
            For a gradient that does not fit its parameter, is not contiguous, or misaligned, or is read-only and to be
            cleared; if the structure of ``grads`` is not that of ``params``; or if ``scale`` is not finite.
        gdm.NonFiniteError
            If a gradient is NaN or infinite and the optimizer was made with ``nonfinite="raise"``.
        gdm.OverlapError
            If a gradient shares memory with a parameter or a state; or, if it is to be cleared, with another gradient.
        gdm.StaleBufferError
            If a parameter or a bound gradient has moved, been resized, or changed its dtype, order or flags.
        RuntimeError
            If another thread is in the middle of a step, or nothing is bound.

        After an exception nothing has changed.
        """
        cdef bint alone, by_reference
        cdef list items
        cdef Engine engine
        cdef int status
        self.lock()
        try:
            self.require()
            engine = self.engine
            if engine.plan.mode == EVAL:
                raise RuntimeError(_checks.EVALUATING)
            if grads is None and engine.bound is None:
                raise RuntimeError("no gradients: call step(grads), or bind(grads) first" + self._torch_hint())
            if not -FLOAT32_OVERFLOW < scale < FLOAT32_OVERFLOW:
                raise ValueError(f"scale must be finite in float32, got {scale!r}")
            if self.schedules:
                self.set_scheduled_rates()  # runs user code: before anything is checked
            # While other threads or the reference run, the caller's list may change and release its arrays: then the
            # step takes a list of its own.
            by_reference = uses_reference()
            alone = engine.plan.elements < GIL_THRESHOLD and not by_reference and not engine.prepares
            if grads is not None:
                items = self.checked_grads(grads, FREE_THREADED or not alone, None)
            else:
                items = engine.bound
                if engine.bound_sources is not None:
                    _foreign.look_again(items, engine.bound_sources)
            self.check_params()
            self.take_grads(engine, items, grads is None)
            if by_reference:
                self.reference_step(items, scale)
                return
            if has_other_bits(scale, engine.plan.around.scale):
                gdm_plan_set_scale(engine.plan, scale)
            engine.plan.threads = get_flag(&self.thread_count)
            if engine.prepares:
                self.prepare(engine, items, grads is None)
            status = engine.run(alone)
            if status == ERR_NONFINITE:
                self._refuse_nonfinite(items)
            if status != OK:
                refuse(status)
        finally:
            unlock(&self.busy)


share(OptimizerCore.__dict__["step"])


cdef int write_all(writes) except -1:
    """Writes what the rules in NumPy have computed: C code alone, when everything has been checked."""
    cdef list ordered = []
    for target, value in writes:
        ordered.append((target, _checks.in_order_of(target, value)))
    for target, value in ordered:
        if not (is_stored(<PyObject *>target, WRITABLE) and is_stored(<PyObject *>value, READABLE)
                and bytes_of(<PyObject *>value) == bytes_of(<PyObject *>target)):
            raise RuntimeError("the reference returned another array")
    for target, value in ordered:
        memcpy(data(<PyObject *>target), data(<PyObject *>value), bytes_of(<PyObject *>target))
    return 0


cdef list some(list sources):
    """The list, or None if everything in it is None."""
    for source in sources:
        if source is not None:
            return sources
    return None


cdef int add_schedule(list schedules, size_t index, dict options) except -1:
    """Adds the schedule of a group to a list, if its learning rate is one."""
    cdef _Schedule schedule
    lr = options["lr"]
    if callable(lr):
        schedule = _Schedule.__new__(_Schedule)
        schedule.group, schedule.function, schedule.count = index, lr, 0
        schedules.append(schedule)
    return 0
