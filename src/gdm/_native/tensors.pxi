# Tensors of PyTorch: one step over tensors whose addresses are read anew each time. gdm/torch decides what is stepped.

from types import GetSetDescriptorType

cdef extern from "Python.h":
    PyObject *PyDict_GetItemWithError(PyObject *dict, PyObject *key) except? NULL
    bint PyDict_Next(PyObject *dict, Py_ssize_t *position, PyObject **key, PyObject **value)
    Py_ssize_t PyDict_Size(PyObject *dict)
    Py_ssize_t PyList_GET_SIZE(PyObject *list)
    bint PyList_CheckExact(PyObject *)
    PyObject *PyObject_GetAttr(PyObject *, PyObject *name) except NULL
    void Py_CLEAR(PyObject *)
    void release "Py_DECREF"(PyObject *)
    void PyErr_Clear()

cdef extern from *:
    """
    #include "gdm/gdm.h"
    /* From dlpack.h, version 1: what PyTorch 2.10 and later give for a tensor. */
    typedef struct {
        void *data;
        int32_t device_type, device_id, ndim;
        uint8_t code, bits;
        uint16_t lanes;
        int64_t *shape, *strides;
        uint64_t byte_offset;
    } gdm_dltensor;
    typedef struct {
        uint32_t major, minor;
        void *previous, *allocate, *export_object, *import_object;
        int (*describe)(void *object, gdm_dltensor *out);
    } gdm_dlpack;

    /* The C interface of libtorch. A handle is the address of a C++ tensor. Functions return 0 if they succeed. */
    typedef int gdm_get_pointer(void *handle, void **out);
    typedef int gdm_get_number(void *handle, int64_t *out);
    typedef int gdm_get_numbers(void *handle, int64_t **out);
    typedef int gdm_get_code(void *handle, int32_t *out);
    typedef int gdm_torch_parallel_for(int64_t begin, int64_t end, int64_t grain,
                                       void (*run)(int64_t, int64_t, void *), void *context);
    typedef int gdm_torch_get_count(uint32_t *out);

    /* The attribute of a C class, without the search for it: `descriptor` is the class's own entry. */
    static inline PyObject *gdm_get_by(PyObject *descriptor, PyObject *x) {
        const PyGetSetDef *found = ((PyGetSetDescrObject *)descriptor)->d_getset;
        return found->get(x, found->closure);
    }

    static inline void gdm_count_up(void *count) {
        __atomic_fetch_add((uint32_t *)count, 1, __ATOMIC_SEQ_CST);
    }

    static inline PyObject *gdm_type_of(PyObject *x) {
        return (PyObject *)Py_TYPE(x);
    }

    struct gdm_spread {
        gdm_task *task;
        void *context;
    };
    static void gdm_spread_range(int64_t begin, int64_t end, void *spread) {
        for (int64_t i = begin; i < end; i++) ((struct gdm_spread *)spread)->task(((struct gdm_spread *)spread)->context,
                                                                                 (size_t)i);
    }
    /* A gdm_parallel_for on PyTorch's threads. The host is the address of torch_parallel_for. */
    static void gdm_spread_by_torch(void *host, size_t count, gdm_task *task, void *context) {
        struct gdm_spread spread = {task, context};
        ((gdm_torch_parallel_for *)host)(0, (int64_t)count, 1, gdm_spread_range, &spread);
    }
    """
    ctypedef struct dltensor "gdm_dltensor":
        void *data
        int device_type, ndim
        uint8_t code, bits
        int64_t *shape
        int64_t *strides
        uint64_t byte_offset
    ctypedef struct dlpack "gdm_dlpack":
        uint32_t major
        int (*describe)(void *object, dltensor *out) noexcept
    ctypedef int get_pointer "gdm_get_pointer"(void *handle, void **out) noexcept
    ctypedef int get_number "gdm_get_number"(void *handle, int64_t *out) noexcept
    ctypedef int get_numbers "gdm_get_numbers"(void *handle, int64_t **out) noexcept
    ctypedef int get_code "gdm_get_code"(void *handle, int32_t *out) noexcept
    ctypedef int get_count "gdm_torch_get_count"(uint32_t *out) noexcept
    void count_up "gdm_count_up"(void *count) noexcept
    PyObject *type_of "gdm_type_of"(PyObject *x) noexcept
    PyObject *get_by "gdm_get_by"(PyObject *descriptor, PyObject *x) except NULL
    void spread_by_torch "gdm_spread_by_torch"(void *host, size_t count, task *task, void *context) noexcept nogil


# ---- reading a tensor ----

cdef struct tensor_library:
    # How tensors are read: libtorch's C interface if `offset` is not 0, else DLPack.
    size_t offset  # of the C++ tensor in the Python object
    get_pointer *data
    get_number *ndim
    get_numbers *shape
    get_numbers *strides
    get_code *dtype
    get_code *device
    int32_t float32, float64, bfloat16, float16, cpu
    size_t keys_word  # the word of the C++ tensor that says which kind it is
    uint64_t negated_bit  # the bit in it that says that its elements are negated; 0: not known
    uint64_t plain_keys  # what it is for a strided tensor of PyTorch's own classes on the CPU; 0: not known
    size_t meta_word, grad_word  # the word that points to what autograd knows; the word of that which is the gradient
    void *no_grad  # what the latter is without a gradient; NULL: these are not known
    size_t version_word, version_byte  # the word that points to the counter of versions; where the count is. 0: not known
    dlpack *exchange
    void *parallel_for  # runs something on PyTorch's threads; NULL if they cannot be used
    get_count *num_threads  # NULL if not known

cdef tensor_library torch_library
cdef PyObject *tensor_type = NULL  # torch.Tensor and torch.nn.Parameter: kept alive by gdm.torch
cdef PyObject *parameter_type = NULL
cdef PyObject *grad_descriptor = NULL  # torch.Tensor.grad, if it is an attribute of a C class
cdef object increment_version = None  # marks tensors as changed in place, for autograd

cdef enum:
    OTHER_DTYPE = -1
    NO_ENTRY = 0xFFFFFFFF
    GIL_THRESHOLD_OF_TENSORS = 131072  # more than GIL_THRESHOLD: releasing the GIL means holding all gradients

cdef enum:
    # How a plan fits the tensors. The last: it may fit, but the step must hold references to the gradients.
    FITS
    NO_FIT
    NEEDS_HOLD


cdef struct tensor:
    void *data
    int64_t ndim
    const int64_t *shape  # valid until the tensor changes
    const int64_t *strides
    int dtype  # F32, F64, BF16, F16, or OTHER_DTYPE
    bint may_be_negated  # the elements may have to be negated when they are read


def set_tensor_library(dict addresses, size_t offset, tuple keys, tuple grads, tuple versions, exchange, types, increment):
    """Sets how tensors are read. ``addresses`` are those of functions of libtorch, by name; empty: DLPack is used.

    ``offset`` is where a Python tensor has its C++ tensor; ``keys``, ``grads`` and ``versions`` are the fields
    ``keys_word`` ..., ``meta_word`` ... and ``version_word`` ... of the struct tensor_library; ``exchange`` is the address
    of DLPack's table of functions; ``types`` are torch.Tensor and torch.nn.Parameter; ``increment`` is called with the
    tensors that a step changes, if their versions cannot be counted here.
    """
    global tensor_type, parameter_type, increment_version, grad_descriptor
    cdef tensor_library *own = &torch_library
    cdef size_t address
    own.offset = 0
    own.parallel_for = own.no_grad = NULL
    own.num_threads = NULL
    own.negated_bit = own.plain_keys = own.version_word = 0
    own.exchange = <dlpack *><size_t>exchange
    if addresses:
        own.data = <get_pointer *><size_t>addresses["aoti_torch_get_data_ptr"]
        own.ndim = <get_number *><size_t>addresses["aoti_torch_get_dim"]
        own.shape = <get_numbers *><size_t>addresses["aoti_torch_get_sizes"]
        own.strides = <get_numbers *><size_t>addresses["aoti_torch_get_strides"]
        own.dtype = <get_code *><size_t>addresses["aoti_torch_get_dtype"]
        own.device = <get_code *><size_t>addresses["aoti_torch_get_device_type"]
        own.float32 = (<int32_t (*)() noexcept><size_t>addresses["aoti_torch_dtype_float32"])()
        own.float64 = (<int32_t (*)() noexcept><size_t>addresses["aoti_torch_dtype_float64"])()
        own.bfloat16 = (<int32_t (*)() noexcept><size_t>addresses["aoti_torch_dtype_bfloat16"])()
        own.float16 = (<int32_t (*)() noexcept><size_t>addresses["aoti_torch_dtype_float16"])()
        own.cpu = (<int32_t (*)() noexcept><size_t>addresses["aoti_torch_device_type_cpu"])()
        address = addresses["torch_parallel_for"]
        own.parallel_for = <void *>address
        own.num_threads = <get_count *><size_t>addresses["torch_get_num_threads"]
        own.keys_word, own.negated_bit, own.plain_keys = keys
        own.meta_word, own.grad_word = grads[0], grads[1]
        own.no_grad = <void *><size_t>(grads[2] if own.plain_keys else 0)
        own.version_word, own.version_byte = versions
        own.offset = offset
    tensor_type, parameter_type = <PyObject *>types[0], <PyObject *>types[1]
    increment_version = increment
    grad_descriptor = <PyObject *>types[0].grad if type(types[0].grad) is GetSetDescriptorType else NULL


cdef inline int dtype_of_code(int32_t code) noexcept:
    """The dtype that libtorch has this code for."""
    cdef tensor_library *own = &torch_library
    if code == own.float32:
        return F32
    if code == own.float64:
        return F64
    return BF16 if code == own.bfloat16 else F16 if code == own.float16 else OTHER_DTYPE


cdef inline bint read_by_libtorch(PyObject *x, tensor *out) noexcept:
    cdef tensor_library *own = &torch_library
    cdef void *handle = <char *>x + own.offset
    cdef int32_t code = 0
    if own.device(handle, &code) or code != own.cpu or own.dtype(handle, &code):
        return False
    out.dtype = dtype_of_code(code)
    out.may_be_negated = may_be_negated(handle)
    return read_shape(handle, out) and not own.data(handle, &out.data)


cdef inline bint may_be_negated(void *handle) noexcept:
    cdef tensor_library *own = &torch_library
    return not own.negated_bit or keys_of(handle) & own.negated_bit


cdef inline bint is_known_to_be_negated(const tensor *x) noexcept:
    """Whether the elements are negated when they are read; False if that must be asked in Python."""
    return x.may_be_negated and torch_library.negated_bit


cdef inline uint64_t keys_of(void *handle) noexcept:
    return (<uint64_t **>handle)[0][torch_library.keys_word]


cdef inline void *grad_of(PyObject *param) noexcept:
    """The C++ tensor that is the gradient of a parameter; NULL if it has none."""
    cdef void **meta = <void **>(<void ***>(<char *>param + torch_library.offset))[0][torch_library.meta_word]
    if meta == NULL or meta[torch_library.grad_word] == torch_library.no_grad:
        return NULL
    return &meta[torch_library.grad_word]


cdef inline bint read_plain(void *handle, tensor *out) noexcept:
    """Reads a C++ tensor, if it is a strided one of PyTorch's own classes on the CPU, and not negated."""
    cdef tensor_library *own = &torch_library
    cdef int32_t code
    if keys_of(handle) != own.plain_keys or own.dtype(handle, &code):
        return False
    out.dtype = dtype_of_code(code)
    out.may_be_negated = False
    return read_shape(handle, out) and not own.data(handle, &out.data)


cdef inline bint read_shape(void *handle, tensor *out) noexcept:
    """Reads shape and strides; False if the tensor has another layout than a strided one, and so no strides."""
    cdef tensor_library *own = &torch_library
    return not (own.strides(handle, <int64_t **>&out.strides) or own.shape(handle, <int64_t **>&out.shape)
                or own.ndim(handle, &out.ndim))


cdef inline bint read_again(PyObject *x, tensor *out) noexcept:
    """Reads a tensor that mostly is a plain one. Nothing is known from before: another dtype may lie at the same
    address."""
    cdef tensor_library *own = &torch_library
    return own.plain_keys and read_plain(<char *>x + own.offset, out) or read_tensor(x, out)


cdef bint read_by_dlpack(PyObject *x, tensor *out) noexcept:
    cdef dltensor described
    if torch_library.exchange == NULL or torch_library.exchange.describe(<void *>x, &described):
        PyErr_Clear()
        return False
    if described.device_type != 1:  # kDLCPU
        return False
    out.data = <char *>described.data + described.byte_offset
    out.ndim, out.shape, out.strides = described.ndim, described.shape, described.strides
    out.dtype = OTHER_DTYPE
    if described.code == 2:  # kDLFloat
        out.dtype = F32 if described.bits == 32 else F64 if described.bits == 64 else F16 if described.bits == 16 \
            else OTHER_DTYPE
    elif described.code == 4 and described.bits == 16:  # kDLBfloat
        out.dtype = BF16
    out.may_be_negated = True
    return True


cdef inline bint read_tensor(PyObject *x, tensor *out) noexcept:
    """Reads a tensor of PyTorch's own classes; False if it is not a strided tensor on the CPU."""
    return read_by_libtorch(x, out) if torch_library.offset else read_by_dlpack(x, out)


cdef inline bint is_plain(PyObject *x) noexcept:
    """Whether this is a tensor of PyTorch's own classes, so that its memory is what it says."""
    return type_of(x) == tensor_type or type_of(x) == parameter_type


cdef inline bint count_version(PyObject *x) noexcept:
    """Tells autograd that a tensor changes; False if PyTorch must be asked to."""
    cdef void **handle
    if not torch_library.version_word or not is_plain(x):
        return False
    handle = (<void ***>(<char *>x + torch_library.offset))[0]
    if handle[torch_library.version_word] == NULL:
        return False
    count_up(<char *>handle[torch_library.version_word] + torch_library.version_byte)
    return True


cdef inline bint fills_memory(const tensor *x, size_t *n) noexcept:
    """Whether the elements fill a piece of memory, each once, in any order of the axes; and how many there are."""
    cdef int64_t i, k, expected = 1, count = 1
    cdef bint in_order = True
    for i in range(x.ndim - 1, -1, -1):
        if x.shape[i] != 1 and x.strides[i] != count:
            in_order = False
        count *= x.shape[i]
    n[0] = <size_t>count
    if in_order or count == 0:
        return True
    while expected < count:  # finds the axis whose stride is the size of all axes found so far
        k = -1
        for i in range(x.ndim):
            if x.shape[i] != 1 and x.strides[i] == expected:
                k = i
        if k < 0:
            return False
        expected *= x.shape[k]
    return True


cdef inline bint same_layout(const tensor *x, const tensor *y) noexcept:
    """Whether two tensors have the same shape, and their elements lie in memory in the same order."""
    cdef int64_t i
    if x.ndim != y.ndim:
        return False
    for i in range(x.ndim):
        if x.shape[i] != y.shape[i]:
            return False
    for i in range(x.ndim):
        if x.strides[i] != y.strides[i] and x.shape[i] != 1:
            return is_empty(x)
    return True


cdef inline bint is_empty(const tensor *x) noexcept:
    cdef int64_t i
    for i in range(x.ndim):
        if x.shape[i] == 0:
            return True
    return False


cdef inline unsigned threads_of_torch() noexcept:
    cdef uint32_t n = 0
    if torch_library.num_threads == NULL or torch_library.num_threads(&n):
        return 0
    return n


cdef inline void use_threads(plan *plan, unsigned threads) noexcept:
    """Lets a step use so many threads, those of PyTorch where that is possible; 0: as many as PyTorch uses."""
    cdef unsigned torchs = threads_of_torch()
    plan.threads = threads if threads else torchs
    plan.spread = NULL
    if torch_library.parallel_for == NULL or gdm_generation() != 0:
        return  # a forked child has no threads of PyTorch's
    if 0 < plan.threads <= torchs:
        plan.spread, plan.host = spread_by_torch, torch_library.parallel_for


# ---- numbers that are kept in tensors of one element: counts of steps, scalars ----

cdef struct number:
    # Where a number is kept, as float32 or float64.
    void *data
    int dtype


cdef inline double get_number_of(const number *x) noexcept:
    return (<float *>x.data)[0] if x.dtype == F32 else (<double *>x.data)[0]


cdef inline void set_number_of(const number *x, double value) noexcept:
    if x.dtype == F32:
        (<float *>x.data)[0] = <float>value
    else:
        (<double *>x.data)[0] = value


cdef inline bint is_rounded(double value, const number *x) noexcept:
    """Whether the tensor's number is this value, rounded to the tensor's dtype."""
    return get_number_of(x) == (<double><float>value if x.dtype == F32 else value)


cdef inline bint read_number(PyObject *x, number *out) noexcept:
    """Reads a tensor that keeps one number."""
    cdef tensor read
    cdef int64_t i
    if not is_plain(x) or not read_tensor(x, &read) or read.dtype != F32 and read.dtype != F64:
        return False
    for i in range(read.ndim):
        if read.shape[i] != 1:
            return False
    out.data, out.dtype = read.data, read.dtype
    return out.data != NULL


cdef inline bint read_number_again(PyObject *x, number *out) noexcept:
    """Reads a tensor that mostly is a plain one without axes, as PyTorch's counts are."""
    cdef tensor_library *own = &torch_library
    cdef void *handle = <char *>x + own.offset
    cdef int32_t code
    cdef int64_t ndim
    if not own.plain_keys or not is_plain(x) or keys_of(handle) != own.plain_keys:
        return read_number(x, out)
    if own.ndim(handle, &ndim) or ndim or own.dtype(handle, &code) or own.data(handle, &out.data):
        return read_number(x, out)
    out.dtype = F32 if code == own.float32 else F64 if code == own.float64 else OTHER_DTYPE
    return out.dtype != OTHER_DTYPE and out.data != NULL


cdef inline bint lie_alike(const tensor *p, const tensor *g, size_t n) noexcept:
    """Whether a step can walk through a parameter and this tensor side by side. A float64 tensor, unless it is a copy,
    needs a float64 parameter."""
    return (g.dtype != F64 or p.dtype == F64) and lies_beside(p, g, n)


cdef inline bint lies_beside(const tensor *p, const tensor *x, size_t n) noexcept:
    """The same for a copy."""
    if x.dtype == OTHER_DTYPE or not same_layout(p, x) or n and x.data == NULL:
        return False
    return not <uintptr_t>x.data % size_of(x.dtype)


cdef inline bint is_readable(const tensor *p, const tensor *g, size_t n, PyObject *grad) except -1:
    """Whether a kernel can read this gradient as it lies in memory."""
    return lie_alike(p, g, n) and not (g.may_be_negated and (<object>grad).is_neg())


# ---- an optimizer's step ----

cdef str PARAMS = "params"
cdef str GRAD_NAME = "grad"

cdef struct slot:
    # One parameter of an optimizer, in the order of its groups. TensorEngine.slot_objects keeps the objects alive.
    PyObject *param
    PyObject *local  # the tensor that is updated: the parameter itself, or the local part of a distributed one
    PyObject *states[MAX_STATES]  # in the rule's order; NULL for one that is not in use
    PyObject *counter  # keeps the count of steps; NULL if the rule does not count
    PyObject *scalars[MAX_SCALARS]  # keep the rule's scalars
    uint32_t scalar_count
    PyObject *copy  # gets the parameter at each step, or NULL
    void *copied  # where its memory is
    number count, kept[MAX_SCALARS]  # where the count and the scalars are
    PyObject *grad  # during a step that holds it
    size_t gap  # between which written buffers the last gradient lay: see is_apart
    uint32_t group
    uint32_t entry  # in the plan, or NO_ENTRY
    uint8_t dtypes[MAX_BUFFERS]  # in which the parameter, the gradient and the states are stored
    uint8_t copy_dtype
    bint is_present  # this step updates it
    bint is_prepared  # its update in this step has been prepared
    bint is_left  # PyTorch updates it in this step
    bint is_foreign  # PyTorch updates it
    bint is_nested  # the memory belongs to another tensor than the parameter


cdef inline bint read_scalars(slot *s, double *scalars, bint *changed) noexcept:
    """Reads a parameter's scalars from their tensors, which may hold other numbers than ``scalars``."""
    cdef uint32_t k
    for k in range(s.scalar_count):
        if not read_number_again(s.scalars[k], &s.kept[k]):
            return False
        if scalars[k] != get_number_of(&s.kept[k]):  # a float32 tensor has rounded it
            changed[0], scalars[k] = True, get_number_of(&s.kept[k])
    return True


cdef inline void write_progress_of(const plan *plan, slot *s) noexcept:
    """Writes a parameter's new count of steps and scalars into their tensors."""
    cdef uint64_t steps
    cdef double scalars[MAX_SCALARS]
    cdef uint32_t k
    if s.counter == NULL and not s.scalar_count:
        return
    gdm_plan_get_progress(plan, s.entry, &steps, scalars)
    if s.counter != NULL:
        set_number_of(&s.count, <double>steps)
    for k in range(s.scalar_count):
        set_number_of(&s.kept[k], scalars[k])


cdef inline bint is_apart(const plan *plan, slot *slot, const void *start, size_t bytes) noexcept:
    """Whether a gradient shares no memory with what a step writes. It mostly lies in the same gap as the last one."""
    cdef uintptr_t first = <uintptr_t>start, last = first + bytes
    cdef size_t gap = slot.gap, low = 0, high = plan.written_count, middle
    if (gap <= high and (gap == 0 or plan.written[gap - 1].end <= first)
            and (gap == high or last <= plan.written[gap].start)):
        return True
    while low < high:  # the spans before `low` end at or before `first`; those from `high` on do not
        middle = low + (high - low) // 2
        if plan.written[middle].end <= first:
            low = middle + 1
        else:
            high = middle
    slot.gap = low
    return bytes == 0 or low == plan.written_count or last <= plan.written[low].start


cdef class TensorEngine:
    """A plan for the tensors of one optimizer of ``gdm.torch``, as long as its groups and states stay the same.

    The optimizer provides:

    ``_lock``                      an OptimizerCore that only one step at a time locks
    ``_describe(group)``           what ``groups`` below has for a group
    ``_usable_grad(param, local, grad)``  the gradient as a tensor like ``local``; None if PyTorch must make the step
    ``_step_by_torch(indices)``    lets PyTorch update the parameters with these indices
    ``updates``, ``_count_update()``  for stochastic rounding: how many steps have been made, and one more
    ``_finish_preparation(group, param, states)``  for rules whose steps need a preparation: turns what it wrote into
                                   what the step reads
    """

    cdef plan *plan
    cdef slot *slots
    cdef size_t slot_count
    # What the optimizer held when the engine was made.
    cdef object groups, state  # a list and a dict, or of subclasses
    cdef list group_dicts, param_lists, group_values  # the values of each group are in the order of `keys`
    cdef list state_keys, state_values, inner_keys, inner_values
    cdef list slot_objects
    cdef tuple keys  # the options; the first is the learning rate
    cdef list plan_groups  # for each group its index in the plan and its rule, or None
    cdef list live  # for each group whether options are tensors, whose values may change
    cdef list versioned  # for each slot the tensors whose versions a step increments
    cdef list foreign  # slots that PyTorch always updates
    cdef size_t left  # how many more it updates in this step
    cdef size_t misfit  # the slot at which the plan was last found not to fit
    cdef bint hold  # steps must hold references to the gradients: other code, or a thread, may run during a step
    cdef bint prepares  # some rule's steps need a preparation, after which other code runs
    cdef bint must_arrange  # buffers of the plan have moved
    cdef double scale  # what the plan multiplies the gradients by
    cdef bint random  # rounds stochastically: an entry has the index of its slot
    cdef OptimizerCore lock  # the optimizer's: it remains when there is another engine
    cdef readonly bint has_run

    def __cinit__(self, optimizer, list groups, list slots, tuple keys, bint random, uint64_t seed):
        """Makes the plan.

        ``groups`` has for each group its rule, its options, and whether some of these are tensors; or None if PyTorch
        updates it. ``slots`` has a tuple for each parameter: the index of its group; the parameter; the tensor that has
        its memory, or None if PyTorch updates it; its states in the rule's order, or None if it has had no gradient
        yet; the tensor that keeps its count, or None; those that keep its scalars; whether its states have begun; the tensors whose
        versions a step increments; and the tensor that gets a copy of it, or None. ``random``: what is narrow is
        rounded stochastically, with this seed.
        """
        cdef step_args around
        cdef any_args args
        cdef size_t index = 0, i
        cdef int status = gdm_plan_create(&self.plan)
        if status != OK:
            refuse(status)
        if not isinstance(optimizer.state, dict):
            raise TypeError(f"the optimizer's state must be a dict, not {type(optimizer.state).__name__}")
        self.keys, self.slot_objects, self.lock = keys, slots, optimizer._lock
        self.plan_groups, self.live, self.versioned, self.foreign = [], [], [], []
        for described in groups:
            if described is None:
                self.plan_groups.append(None)
                self.live.append(True)  # an option may come into gdm's range
                continue
            rule, options, live = described
            fill(&args, rule_numbers[rule], options, options["lr"])
            status = gdm_plan_add_group(self.plan, <rule_t><int>rule_numbers[rule], &args, &index)
            if status != OK:
                refuse(status)
            self.prepares = self.prepares or self.plan.groups[index].choice.prepare != 0
            self.plan_groups.append((index, rule))
            self.live.append(live)
        self.watch_groups(optimizer.param_groups)
        self.watch_state(optimizer.state)
        self.slots = <slot *>PyMem_Calloc(<size_t>len(slots) + 1, sizeof(slot))
        if self.slots == NULL:
            raise MemoryError
        self.slot_count = <size_t>len(slots)
        self.scale, self.random = 1.0, random
        if random:
            around = self.plan.around
            around.rounding, around.seed = STOCHASTIC, seed
            status = gdm_plan_set_step_args(self.plan, &around)
            if status != OK:
                refuse(status)
        for i in range(self.slot_count):
            self.fill_slot(i, <tuple>slots[i])
            if random and self.slots[i].entry == NO_ENTRY:
                self.fill_place(self.slots[i].group)
        status = gdm_plan_arrange(self.plan)
        if status != OK:
            refuse(status)
        self.hold = (self.hold or FREE_THREADED or self.prepares or bool(self.foreign)
                     or self.plan.elements >= GIL_THRESHOLD_OF_TENSORS)

    def __dealloc__(self):
        gdm_plan_destroy(self.plan)
        PyMem_Free(self.slots)

    # ---- making it ----

    cdef int watch_groups(self, groups) except -1:
        if not isinstance(groups, list):
            raise TypeError(f"the optimizer's param_groups must be a list, not {type(groups).__name__}")
        self.groups, self.group_dicts, self.param_lists, self.group_values = groups, list(groups), [], []
        for group in self.group_dicts:
            if not isinstance(group, dict) or not isinstance(group["params"], list):
                raise TypeError("the optimizer's groups must be dicts with a list of params")
            self.param_lists.append(group["params"])
            self.group_values.append(self.values_of(group))
        return 0

    cdef list values_of(self, group):
        cdef list values = []
        for key in self.keys:
            values.append(group.get(key, required))
        return values

    cdef int watch_state(self, state) except -1:
        self.state, self.state_keys, self.state_values = state, list(state), list(state.values())
        self.inner_keys, self.inner_values = [], []
        for inner in self.state_values:
            self.inner_keys.append(list(inner) if isinstance(inner, dict) else None)
            self.inner_values.append(list(inner.values()) if isinstance(inner, dict) else None)
        return 0

    cdef int fill_slot(self, size_t i, tuple given) except -1:
        cdef slot *s = &self.slots[i]
        cdef entry_args e
        cdef buffer states[MAX_STATES]
        cdef tensor x
        cdef size_t k, index
        cdef int status
        group, param, local, its_states, counter, scalars, begun, versioned, its_copy = given
        s.group, s.param, s.entry = group, <PyObject *>param, NO_ENTRY
        self.versioned.append(versioned)
        if local is None:
            s.is_foreign = True
            self.foreign.append(i)
            return 0
        s.local, s.is_nested = <PyObject *>local, local is not param
        if its_states is None:
            return 0
        memset(&e, 0, sizeof(e))
        memset(states, 0, sizeof(states))
        e.size, e.group, e.lr_factor = sizeof(e), (<tuple>self.plan_groups[s.group])[0], 1.0
        if not read_tensor(s.local, &x) or not fills_memory(&x, &e.n):
            raise RuntimeError("a parameter has not been checked")
        e.param.data, e.param.dtype = x.data, <dtype_t>x.dtype
        s.dtypes[PARAM], s.dtypes[GRAD] = <uint8_t>x.dtype, F64 if x.dtype == F64 else F32
        if its_copy is not None:
            s.copy = <PyObject *>its_copy
            if not read_tensor(s.copy, &x):
                raise RuntimeError("a copy has not been checked")
            e.copy.data, e.copy.dtype = x.data, <dtype_t>x.dtype
            s.copied, s.copy_dtype = x.data, <uint8_t>x.dtype
        for k in range(<size_t>len(<tuple>its_states)):
            state = (<tuple>its_states)[k]
            if state is None:
                continue
            s.states[k] = <PyObject *>state
            if not read_tensor(s.states[k], &x):
                raise RuntimeError("a state has not been checked")
            states[k].data, states[k].dtype = x.data, <dtype_t>x.dtype
            s.dtypes[STATE + k] = <uint8_t>x.dtype
        e.states, e.state_count = states, <size_t>len(<tuple>its_states)
        status = gdm_plan_add(self.plan, &e, &index)
        if status != OK:
            refuse(status)
        s.entry = <uint32_t>index
        if counter is not None:
            s.counter = <PyObject *>counter
        for k in range(<size_t>len(<tuple>scalars)):
            scalar = (<tuple>scalars)[k]
            s.scalars[k] = <PyObject *>scalar
            s.scalar_count += 1
        if not self.read_progress(s, begun):
            raise RuntimeError("a count of steps has not been checked")
        self.hold = self.hold or s.is_nested or not is_plain(s.param)
        return 0

    cdef int fill_place(self, size_t group) except -1:
        """Adds an empty entry to the plan, for a parameter that it does not update: the random bits of an entry depend
        on its place."""
        cdef entry_args e
        cdef size_t index
        cdef int status
        if self.plan.group_count == 0:
            return 0
        memset(&e, 0, sizeof(e))
        planned = self.plan_groups[group]
        e.size, e.group, e.lr_factor = sizeof(e), 0 if planned is None else (<tuple>planned)[0], 1.0
        status = gdm_plan_add(self.plan, &e, &index)
        if status != OK:
            refuse(status)
        return 0

    cdef bint read_progress(self, slot *s, uint64_t steps) noexcept:
        """Sets how far the plan is with a parameter, if its tensors say something else; False if they make no sense.

        ``steps`` holds for a rule that does not count."""
        cdef uint64_t planned = 0
        cdef double scalars[MAX_SCALARS]
        cdef double count
        cdef bint changed = False
        gdm_plan_get_progress(self.plan, s.entry, &planned, scalars)
        if s.counter != NULL:
            if not read_number_again(s.counter, &s.count):
                return False
            if not is_rounded(<double>planned, &s.count):
                count = get_number_of(&s.count)
                if not 0 <= count <= 2.0**53 or <double><uint64_t>count != count:
                    return False
                changed, planned = True, <uint64_t>count
        else:
            changed, planned = planned != steps, steps
        if not read_scalars(s, scalars, &changed):
            return False
        return not changed or gdm_plan_set_progress(self.plan, s.entry, planned, scalars) == OK

    # ---- has the optimizer changed? ----

    cdef bint same_groups(self, optimizer) except -1:
        """Whether the groups have the same parameters as before; takes over changed options."""
        cdef Py_ssize_t g
        cdef size_t slots = 0
        cdef PyObject *groups = <PyObject *>self.groups
        if optimizer.param_groups is not self.groups:
            return False
        for g in range(len(self.group_dicts)):
            if not self.same_group(optimizer, g, &slots):
                return False
        with cython.critical_section(self.groups):  # the last, since the options may have run other code
            if PyList_GET_SIZE(groups) != len(self.group_dicts):
                return False
            for g in range(len(self.group_dicts)):
                if items_of(groups)[g] != items_of(<PyObject *>self.group_dicts)[g]:
                    return False
        return slots == self.slot_count

    cdef bint same_group(self, optimizer, Py_ssize_t g, size_t *slots) except -1:
        """The same for one group, whose slots come after ``slots`` others."""
        cdef PyObject *value
        cdef PyObject **items
        cdef PyObject **before = items_of(items_of(<PyObject *>self.group_values)[g])
        cdef Py_ssize_t k, n
        cdef int changed = 0  # how many options, and whether the first one
        cdef bint first_changed = False
        group, params = self.group_dicts[g], self.param_lists[g]
        with cython.critical_section(group, params):
            if PyDict_GetItemWithError(<PyObject *>group, <PyObject *>PARAMS) != <PyObject *>params:
                return False  # also if there are none
            n, items = PyList_GET_SIZE(<PyObject *>params), items_of(<PyObject *>params)
            if slots[0] + <size_t>n > self.slot_count:
                return False
            for k in range(n):
                if items[k] != self.slots[slots[0]].param or self.slots[slots[0]].group != g:
                    return False
                slots[0] += 1
            for k in range(len(self.keys)):
                value = PyDict_GetItemWithError(<PyObject *>group, PyTuple_GET_ITEM(<PyObject *>self.keys, k))
                if (value if value != NULL else <PyObject *>required) != before[k]:
                    changed += 1
                    first_changed = first_changed or k == 0
        if changed == 1 and first_changed and self.take_lr(g, group):
            return True
        return not (changed or self.live[g]) or self.take_options(optimizer, g, group)

    cdef bint take_lr(self, Py_ssize_t g, group) except -1:
        """Takes over a learning rate that is a plain float; False if there is more to it."""
        lr = group[self.keys[0]]
        if self.live[g] or self.plan_groups[g] is None or not PyFloat_CheckExact(lr):
            return False
        if gdm_plan_set_lr(self.plan, (<tuple>self.plan_groups[g])[0], lr) != OK:
            return False
        (<list>self.group_values[g])[0] = lr
        return True

    cdef bint take_options(self, optimizer, Py_ssize_t g, group) except -1:
        """Takes over the options of a group; False if they need another plan."""
        cdef any_args args
        values = self.values_of(group)
        described = optimizer._describe(group)
        planned = self.plan_groups[g]
        if described is None or planned is None:
            if described is not planned:
                return False
            self.group_values[g] = values
            return True
        index, rule = <tuple>planned
        its_rule, options, live = described
        if its_rule != rule:
            return False
        fill(&args, rule_numbers[rule], options, options["lr"])
        if gdm_plan_set_args(self.plan, index, &args) != OK:
            return False
        self.group_values[g], self.live[g] = values, live
        return True

    cdef bint same_state(self, optimizer) except -1:
        """Whether the optimizer's states are the same objects as before, with the same names."""
        cdef PyObject *key
        cdef PyObject *value
        cdef Py_ssize_t i = 0, position = 0
        state = optimizer.state
        if state is not self.state:
            return False
        with cython.critical_section(state):  # which other threads may interrupt at the inner ones
            while PyDict_Next(<PyObject *>state, &position, &key, &value):
                if i == len(self.state_keys) or key != items_of(<PyObject *>self.state_keys)[i]:
                    return False
                if value != items_of(<PyObject *>self.state_values)[i]:
                    return False
                if self.inner_keys[i] is not None and not self.same_inner(i):
                    return False
                i += 1
        return i == len(self.state_keys)

    cdef bint same_inner(self, Py_ssize_t i) except -1:
        """The same for the state of one parameter."""
        cdef PyObject *name
        cdef PyObject *content
        cdef Py_ssize_t k = 0, position = 0
        cdef list names = self.inner_keys[i], contents = self.inner_values[i]
        state = self.state_values[i]
        with cython.critical_section(state):
            if PyDict_Size(<PyObject *>state) != len(contents):
                return False
            while PyDict_Next(<PyObject *>state, &position, &name, &content):
                if content != items_of(<PyObject *>contents)[k] or name != items_of(<PyObject *>names)[k]:
                    return False
                k += 1
        return True

    # ---- the step ----

    cdef bint gather(self, optimizer) except -1:
        """Reads all addresses, and checks everything; False if the plan no longer fits the optimizer.

        Other code may run at first: in Python functions, and wherever a Python object is made, since the garbage
        collector may then call finalizers. It may free gradients and move tensors. So from read_slots on there is no
        Python code, and no object is made, until the end of the step. Without ``hold`` a step needs no gradient before.
        """
        cdef int found
        self.hold = self.hold or torch_library.no_grad == NULL
        self.left = 0
        if self.hold and not self.take_grads(optimizer):
            return False
        if not self.same_groups(optimizer) or not self.same_state(optimizer):
            return False
        found = self.read_slots()
        if found == NEEDS_HOLD and not self.hold:
            self.hold = True
            return self.gather(optimizer)
        return found == FITS

    cdef bint take_grads(self, optimizer) except -1:
        """Takes references to all gradients, as tensors that kernels can read. False if the plan no longer fits."""
        cdef size_t i
        for i in range(self.slot_count):
            Py_CLEAR(self.slots[i].grad)
            self.slots[i].is_left = False
        for i in range(self.slot_count):
            if not self.slots[i].is_foreign and not self.take_grad(optimizer, &self.slots[i]):
                return False
        return True

    cdef bint take_grad(self, optimizer, slot *s) except -1:
        cdef tensor p, g
        cdef size_t n
        cdef PyObject *grad
        if grad_descriptor != NULL and is_plain(s.param):
            grad = get_by(grad_descriptor, s.param)
        else:
            grad = PyObject_GetAttr(s.param, <PyObject *>GRAD_NAME)
        if grad == <PyObject *>None:
            Py_CLEAR(grad)
            return True
        s.grad = grad
        if s.entry == NO_ENTRY or s.is_nested and optimizer._local_of(<object>s.param) is not <object>s.local:
            return False
        if not torch_library.negated_bit and self.is_any_negated(s):
            return False
        if not read_again(s.local, &p) or not fills_memory(&p, &n):
            return False
        if not s.is_nested and is_plain(grad) and read_tensor(grad, &g) and is_readable(&p, &g, n, grad):
            return True
        usable = optimizer._usable_grad(<object>s.param, <object>s.local, <object>grad)
        if usable is None:
            self.leave(s)
        else:
            Py_INCREF(usable)
            s.grad = <PyObject *>usable
            release(grad)
        return True

    cdef bint is_any_negated(self, slot *s) except -1:
        """Asks whether the elements of the parameter, its copy or a state are negated when they are read."""
        cdef size_t k
        if s.copy != NULL and (<object>s.copy).is_neg():
            return True
        for k in range(MAX_STATES):
            if s.states[k] != NULL and (<object>s.states[k]).is_neg():
                return True
        return (<object>s.local).is_neg()

    cdef inline void leave(self, slot *s) noexcept:
        """Leaves a parameter to PyTorch in this step."""
        s.is_present, s.is_left = False, True
        self.left += 1
        self.plan.entries[s.entry].data[GRAD] = NULL

    cdef int read_slots(self) noexcept:
        """Reads the addresses of all buffers into the plan."""
        cdef slot *s
        cdef size_t i
        cdef int found
        for i in range(self.slot_count):
            s = &self.slots[i]
            s.is_present = False
            if s.is_foreign:
                continue
            found = self.read_slot(s)
            if found != FITS:
                self.misfit = i
                return found
        if self.must_arrange:
            if gdm_plan_arrange(self.plan) != OK:
                return NO_FIT
            self.must_arrange = False
            for i in range(self.slot_count):
                s = &self.slots[i]
                if s.is_present and not is_apart(self.plan, s, self.plan.entries[s.entry].data[GRAD],
                                                   self.bytes_of_grad(s)):
                    self.misfit = i
                    if not self.hold:
                        self.must_arrange = True  # so that the gradients are compared once more
                        return NEEDS_HOLD
                    self.leave(s)
        return FITS

    cdef inline int read_slot(self, slot *s) noexcept:
        cdef tensor p, g, x
        cdef entry *e
        cdef size_t n, k
        cdef void *direct = NULL
        cdef bint has_grad = s.grad != NULL
        if not self.hold:
            if not is_plain(s.param):
                return NEEDS_HOLD
            direct = grad_of(s.param)  # without a Python object for it, which PyTorch may have to make first
            has_grad = direct != NULL
        if s.entry == NO_ENTRY:
            return NO_FIT if has_grad else FITS
        e = &self.plan.entries[s.entry]
        if not read_again(s.local, &p) or not fills_memory(&p, &n) or n != e.n:
            return NO_FIT
        if n and p.dtype != s.dtypes[PARAM] or is_known_to_be_negated(&p) or not lie_alike(&p, &p, n):
            return NO_FIT
        for k in range(MAX_STATES):
            if s.states[k] == NULL:
                continue
            if not read_again(s.states[k], &x) or not lie_alike(&p, &x, n) or is_known_to_be_negated(&x):
                return NO_FIT
            if n and x.dtype != s.dtypes[STATE + k]:
                return NO_FIT
            self.move(&e.data[STATE + k], x.data)
        self.move(&e.data[PARAM], p.data)
        if s.copy != NULL:
            if not read_again(s.copy, &x) or not lies_beside(&p, &x, n) or is_known_to_be_negated(&x):
                return NO_FIT
            if n and x.dtype != s.copy_dtype:
                return NO_FIT
            if x.data != s.copied:
                s.copied = self.plan.details[s.entry].copy.data = x.data
                self.must_arrange = True
        if not has_grad or s.is_left:
            e.data[GRAD] = NULL
            return FITS
        if direct != NULL:
            if not read_plain(direct, &g) or not lie_alike(&p, &g, n):
                return NEEDS_HOLD
        elif not read_tensor(s.grad, &g) or not lie_alike(&p, &g, n) or is_known_to_be_negated(&g):
            return NO_FIT
        s.is_present = True
        if n == 0:
            e.data[GRAD] = &e.data[GRAD]  # not NULL: PyTorch counts the steps of a parameter without elements
        elif g.data != e.data[GRAD] or g.dtype != s.dtypes[GRAD] or self.must_arrange:
            e.data[GRAD] = g.data
            if g.dtype != s.dtypes[GRAD]:
                self.set_grad_dtype(s, g.dtype)
            if not self.must_arrange and not is_apart(self.plan, s, g.data, self.bytes_of_grad(s)):
                self.leave(s)
                return FITS if self.hold else NEEDS_HOLD
        return FITS if s.counter == NULL and not s.scalar_count or self.read_progress(s, 0) else NO_FIT

    cdef inline size_t bytes_of_grad(self, slot *s) noexcept:
        return self.plan.entries[s.entry].n * size_of(s.dtypes[GRAD])

    cdef int set_grad_dtype(self, slot *s, int dtype) noexcept:
        """Takes over the dtype of a gradient that has been set."""
        cdef details *d = &self.plan.details[s.entry]
        s.dtypes[GRAD] = d.dtypes[GRAD] = <uint8_t>dtype
        self.plan.entries[s.entry].tiled = gdm_is_tiled(&self.plan.entries[s.entry], d)
        return 0

    cdef inline void move(self, void **place, void *data) noexcept:
        if place[0] != data:
            place[0] = data
            self.must_arrange = True

    cdef bint mark_changed(self) except -1:
        """Tells autograd which tensors change. Returns whether other code may have run."""
        cdef list changed = None
        cdef slot *s
        cdef size_t i
        for i in range(self.slot_count):
            s = &self.slots[i]
            if s.is_present and (s.is_nested or not count_version(s.param)):
                if changed is None:
                    changed = []
                changed.extend(<tuple>self.versioned[i])
            if s.is_present and s.copy != NULL and not count_version(s.copy):
                if changed is None:
                    changed = []
                changed.append(<object>s.copy)
        if changed is None:
            return False
        increment_version(changed)
        return True

    cdef void release_grads(self) noexcept:
        cdef size_t i
        for i in range(self.slot_count):
            Py_CLEAR(self.slots[i].grad)

    cdef void write_progress(self) noexcept:
        """Writes the new counts of steps and scalars into their tensors."""
        cdef size_t i
        for i in range(self.slot_count):
            if self.slots[i].is_present:
                write_progress_of(self.plan, &self.slots[i])

    cdef int step_by_torch(self, optimizer) except -1:
        """Lets PyTorch update what is left to it. Since it has written then, the rest of the step must not fail: it uses
        the gradients that it holds, and ends with the groups and states that it began with."""
        cdef size_t i
        indices = list(self.foreign)
        for i in range(self.slot_count):
            if self.slots[i].is_left:
                indices.append(i)
        optimizer._step_by_torch(indices)
        self.read_slots_again(optimizer)
        return 0

    cdef int read_slots_again(self, optimizer) except -1:
        """Reads all addresses again when other code may have run: that of a subclass of a tensor, a finalizer."""
        cdef size_t left = self.left
        if self.read_slots() == FITS and self.left == left:
            return 0
        raise RuntimeError(
            f"{optimizer._name_of(self.misfit)} changed its dtype, size, or layout, or began to share memory with its "
            "gradient, in the middle of a step. It has not been updated, others may have been. No other thread, "
            "finalizer or code of a tensor's subclass may change parameters, states or gradients during a step")

    cdef inline bint needs_preparation(self, slot *s) noexcept:
        return s.is_present and self.plan.groups[self.plan.entries[s.entry].group].choice.prepare != 0

    cdef bint prepare(self, optimizer) except -1:
        """Prepares a step. Other code runs then, so everything is checked again; False if the plan no longer fits, or if
        there is a gradient for which nothing has been prepared. Nothing has been written but what only the step reads.
        """
        cdef int status
        cdef size_t i
        cdef slot *s
        with nogil:
            status = gdm_plan_run_preparation(self.plan)
        if status != OK:
            refuse(status)
        for i in range(self.slot_count):
            s = &self.slots[i]
            s.is_prepared = self.needs_preparation(s)
        for i in range(self.slot_count):
            s = &self.slots[i]
            if s.is_prepared:
                optimizer._finish_preparation(s.group, <object>s.param, (<tuple>self.slot_objects[i])[3])
        if not self.gather(optimizer):
            return False
        for i in range(self.slot_count):
            s = &self.slots[i]
            if self.needs_preparation(s) and not s.is_prepared:
                return False
        return True

    def step(self, optimizer, unsigned threads, double scale, bint locked=False):
        """Makes a step, with at most so many threads; 0: as many as PyTorch uses. The gradients are multiplied by
        ``scale``.

        Returns False, and has changed nothing, if the plan no longer fits the optimizer, or the rules in NumPy are to be
        used. ``locked``: the caller has locked the optimizer."""
        cdef int status
        if uses_reference():
            return False
        if not locked:
            self.lock.lock()
        try:
            if self.random:
                gdm_plan_set_updates(self.plan, optimizer.updates, 0)
            if not self.gather(optimizer):
                return False
            if has_other_bits(scale, self.scale):
                status = gdm_plan_set_scale(self.plan, scale)
                if status != OK:
                    refuse(status)
                self.scale = scale
            use_threads(self.plan, threads)
            if self.prepares and not self.prepare(optimizer):
                return False
            if self.foreign or self.left:
                self.step_by_torch(optimizer)
            if self.mark_changed():
                self.read_slots_again(optimizer)
            if not self.hold:
                status = gdm_plan_run(self.plan)
            else:
                with nogil:
                    status = gdm_plan_run(self.plan)
            if status != OK:
                refuse(status)
            self.write_progress()
            self.has_run = True
            if self.random:
                optimizer._count_update()
            return True
        finally:
            self.release_grads()
            if not locked:
                unlock(&self.lock.busy)


# ---- one update, without an optimizer ----

def update_tensors(str rule, dict options, list params, list grads, list states, list steps, list scalars, list copies,
                   bint begun, unsigned threads, double scale):
    """Updates each parameter that has a gradient, in place. Changes nothing unless everything is in order.

    ``states`` has a list for each state of the rule, or None; ``steps`` the number of this step for each parameter, or a
    tensor that keeps the count of steps, or None if the rule does not count; ``scalars`` has a list of tensors for each
    of the rule's scalars; ``copies`` a tensor or None for each parameter, or None; ``scale`` is a factor of the
    gradients. With the option ``prepare`` only the last state is written. Returns -1; or the index of a parameter that
    is not in order; or how many there are, if two share memory.
    """
    cdef plan *plan = NULL
    cdef any_args args
    cdef slot *slots = NULL
    cdef size_t i, count = <size_t>len(params), index
    cdef list changed = []
    cdef bint prepare = options.get("prepare", False)
    cdef int status = gdm_plan_create(&plan)
    try:
        slots = <slot *>PyMem_Calloc(count + 1, sizeof(slot))
        if status != OK or slots == NULL:
            raise MemoryError
        fill(&args, rule_numbers[rule], options, options["lr"])
        status = gdm_plan_add_group(plan, <rule_t><int>rule_numbers[rule], &args, &index)
        if status != OK:
            refuse(status)
        for i in range(count):
            if grads[i] is None:
                continue
            status = add_update(plan, &slots[i], i, params, grads, states, steps, scalars, copies, begun)
            if status == ERR_MEMORY:
                refuse(status)
            if status != OK:
                return i
            changed.append(states[len(states) - 1][i] if prepare else params[i])
            if not prepare and copies is not None and copies[i] is not None:
                changed.append(copies[i])
        status = gdm_plan_arrange(plan)
        if status == ERR_MEMORY:
            refuse(status)
        if status != OK:
            return count
        for i in range(plan.count):
            if gdm_plan_overlaps(plan, plan.entries[i].data[GRAD],
                                 plan.entries[i].n * size_of(plan.details[i].dtypes[GRAD])):
                return count
        if scale != 1.0:
            status = gdm_plan_set_scale(plan, scale)
            if status != OK:
                refuse(status)
        changed = [x for x in changed if not count_version(<PyObject *>x)]
        if changed:
            increment_version(changed)
        use_threads(plan, threads)
        if prepare:
            status = gdm_plan_run_preparation(plan)
        elif plan.elements < GIL_THRESHOLD:
            status = gdm_plan_run(plan)
        else:
            with nogil:
                status = gdm_plan_run(plan)
        if status != OK:
            refuse(status)
        for i in range(count):
            if grads[i] is not None:
                write_progress_of(plan, &slots[i])
        return -1
    finally:
        gdm_plan_destroy(plan)
        PyMem_Free(slots)


cdef int add_update(plan *plan, slot *s, size_t i, list params, list grads, list states, list steps, list scalars,
                    list copies, bint begun, size_t group=0) except -2:
    """Adds one parameter to a group of the plan of an update. Returns GDM_OK, REFUSED, or why the plan refuses it."""
    cdef entry_args e
    cdef buffer buffers[MAX_STATES]
    cdef double number[MAX_SCALARS]
    cdef tensor p, x
    cdef uint64_t done = 1 if begun else 0
    cdef bint changed
    cdef size_t k, index
    cdef double count
    cdef int status
    cdef PyObject *param = items_of(<PyObject *>params)[i]
    cdef PyObject *grad = items_of(<PyObject *>grads)[i]
    cdef PyObject *item
    memset(&e, 0, sizeof(e))
    memset(buffers, 0, sizeof(buffers))
    e.size, e.lr_factor, e.states, e.state_count = sizeof(e), 1.0, buffers, <size_t>len(states)
    e.group = group
    if not is_plain(param) or not read_tensor(param, &p) or not fills_memory(&p, &e.n):
        return REFUSED
    if p.dtype == OTHER_DTYPE or p.may_be_negated and (<object>param).is_neg():
        return REFUSED
    if not is_plain(grad) or not read_tensor(grad, &x) or not is_readable(&p, &x, e.n, grad):
        return REFUSED
    e.param.data, e.param.dtype, e.grad.data, e.grad.dtype = p.data, <dtype_t>p.dtype, x.data, <dtype_t>x.dtype
    for k in range(e.state_count):
        if states[k] is None:
            continue
        item = items_of(<PyObject *>(<list>states[k]))[i]
        if not is_plain(item) or not read_tensor(item, &x) or not is_readable(&p, &x, e.n, item):
            return REFUSED
        buffers[k].data, buffers[k].dtype = x.data, <dtype_t>x.dtype
    if copies is not None and copies[i] is not None:
        item = items_of(<PyObject *>copies)[i]
        if not is_plain(item) or not read_tensor(item, &x) or not lies_beside(&p, &x, e.n):
            return REFUSED
        if x.may_be_negated and (<object>item).is_neg():
            return REFUSED
        e.copy.data, e.copy.dtype = x.data, <dtype_t>x.dtype
    status = gdm_plan_add(plan, &e, &index)
    if status != OK:
        return status
    s.entry = <uint32_t>index
    if e.n == 0:
        plan.entries[index].data[GRAD] = &plan.entries[index].n  # not NULL: the step counts
    gdm_plan_get_progress(plan, index, &done, number)
    done = 1 if begun else 0
    if steps is not None:
        item = items_of(<PyObject *>steps)[i]
        if PyLong_CheckExact(item):
            done = <uint64_t><object>item - 1
        else:
            if not read_number(item, &s.count):
                return REFUSED
            s.counter, count = item, get_number_of(&s.count)
            if not 0 <= count <= 2.0**53 or <double><uint64_t>count != count:
                return REFUSED
            done = <uint64_t>count
    for k in range(<size_t>len(scalars)):
        s.scalars[k] = items_of(<PyObject *>(<list>scalars[k]))[i]
        s.scalar_count += 1
    if not read_scalars(s, number, &changed):
        return REFUSED
    return gdm_plan_set_progress(plan, index, done, number)


# ---- the two modes of Schedule-Free methods ----

def swap_tensors(list params, list zs, list steps, list shares, list copies, list groups, bint evaluate,
                 unsigned threads):
    """Puts the averages of a Schedule-Free method in the place of the parameters, or the reverse, in place; then sets
    ``"train_mode"`` in each of the groups, dicts that have the key. Changes nothing unless everything is in order.

    ``steps`` are tensors that keep the count of steps: a parameter that has made none stays as it is. ``shares`` are
    those of the average in the points at which gradients are computed; ``copies`` has a tensor or None for each
    parameter. Returns -1; or the index of a parameter that is not in order; or how many there are, if two
    share memory.
    """
    cdef plan *plan = NULL
    cdef any_args args
    cdef slot unused
    cdef size_t i, group = 0, count = <size_t>len(params)
    cdef list changed = []
    cdef int status = gdm_plan_create(&plan), rule = rule_numbers["schedule_free_sgd"]
    options = {"lr": 0.0, "weight_decay": 0.0, "warmup_steps": 0.0, "r": 0.0, "weight_lr_power": 0.0, "maximize": False}
    try:
        if status != OK:
            raise MemoryError
        for i in range(count):
            if i == 0 or shares[i] != shares[i - 1]:
                options["momentum"] = shares[i]
                fill(&args, rule, options, 0.0)
                status = gdm_plan_add_group(plan, <rule_t>rule, &args, &group)
                if status != OK:
                    refuse(status)
            memset(&unused, 0, sizeof(unused))
            # The parameter is its own gradient, which a swap does not read.
            status = add_update(plan, &unused, i, params, params, [zs], steps, [], copies, True, group)
            if status == ERR_MEMORY:
                refuse(status)
            if status != OK:
                return i
            changed.append(params[i])
            if copies[i] is not None:
                changed.append(copies[i])
        status = gdm_plan_arrange(plan)
        if status == ERR_MEMORY:
            refuse(status)
        if status != OK:
            return count
        gdm_plan_set_mode(plan, TRAIN if evaluate else EVAL)
        changed = [param for param in changed if not count_version(<PyObject *>param)]
        if changed:
            increment_version(changed)
        use_threads(plan, threads)
        with nogil:
            status = gdm_plan_run_swap(plan, EVAL if evaluate else TRAIN)
        if status != OK:
            refuse(status)
        for its_group in groups:
            (<dict>its_group)["train_mode"] = not evaluate
        return -1
    finally:
        gdm_plan_destroy(plan)
