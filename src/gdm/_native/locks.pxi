# Locks, and flags of the whole process, that also hold where Python runs without the GIL.
#
# With the GIL no other thread runs between two lines of C here, so plain memory is enough, and costs nothing.

cdef extern from *:
    """
    #ifdef _WIN32
    #ifndef WIN32_LEAN_AND_MEAN
    #define WIN32_LEAN_AND_MEAN
    #endif
    #include <windows.h>
    static void gdm_nap(void) { Sleep(1); }
    #else
    #include <time.h>
    static void gdm_nap(void) {
        const struct timespec briefly = {0, 20000};
        nanosleep(&briefly, NULL);
    }
    #endif

    #ifdef Py_GIL_DISABLED
    #define GDM_FREE_THREADED 1
    #define gdm_exchange(place, value) __atomic_exchange_n(place, value, __ATOMIC_ACQ_REL)
    #else
    #define GDM_FREE_THREADED 0
    static inline unsigned gdm_exchange(unsigned *place, unsigned value) {
        const unsigned before = *place;
        *place = value;
        return before;
    }
    #endif

    /* A lock is a word: 0, or 1 + the generation of the process in which it was taken. A forked child has no thread
     * that could release its parent's locks, so they do not count there. */
    static inline int gdm_try_lock(unsigned *lock) {
        const unsigned held = 1 + gdm_generation();
        return gdm_exchange(lock, held) != held;
    }
    static inline void gdm_unlock(unsigned *lock) {
    #ifdef Py_GIL_DISABLED
        __atomic_store_n(lock, 0, __ATOMIC_RELEASE);
    #else
        *lock = 0;
    #endif
    }

    /* Flags that any thread may read and set at any time. */
    static inline int gdm_get_flag(const int *flag) { return __atomic_load_n(flag, __ATOMIC_RELAXED); }
    static inline void gdm_set_flag(int *flag, int value) { __atomic_store_n(flag, value, __ATOMIC_RELAXED); }

    /* For functions that many threads call at once: without this, each call writes to the function's count of
     * references, and the threads wait for each other. */
    #if GDM_FREE_THREADED && PY_VERSION_HEX >= 0x030E0000
    #define gdm_share(x) ((void)PyUnstable_Object_EnableDeferredRefcount(x))
    #else
    #define gdm_share(x) ((void)(x))
    #endif
    """
    bint FREE_THREADED "GDM_FREE_THREADED"
    bint try_lock "gdm_try_lock"(unsigned *lock) noexcept nogil
    void unlock "gdm_unlock"(unsigned *lock) noexcept nogil
    void nap "gdm_nap"() noexcept nogil
    int get_flag "gdm_get_flag"(const int *flag) noexcept nogil
    void set_flag "gdm_set_flag"(int *flag, int value) noexcept nogil
    void share "gdm_share"(object x)


cdef inline void wait_for_lock(unsigned *lock) noexcept:
    """Takes a lock that nobody holds for longer than a pass over memory, and never while other people's code runs."""
    while not try_lock(lock):
        with nogil:
            nap()


cdef int use_reference = False


cpdef inline bint uses_reference() noexcept nogil:
    """Whether everything uses the rules in NumPy."""
    return get_flag(&use_reference)
