/* What the threads' code needs from the operating system. A file for each family of systems has the same types and
 * functions; the rest of the library is standard C.
 *
 *     HAS_THREADS, HAS_FORK               whether there are any
 *     now_ns()                            a clock that never goes back
 *     give_way()                          lets another thread run on this core
 *     struct monitor, MONITOR             a lock with a place to sleep, and its initial value
 *     enter(), leave()                    take the lock, release it
 *     sleep_in()                          inside the monitor: releases the lock, sleeps, takes it again
 *     wake_all_in()                       wakes those who sleep in it
 *     thread, THREAD_RESULT               a thread, and the result type of its function, which returns 0
 *     start_thread(), join_thread()       start_thread() returns 0 if there can be no more threads
 *     name_this_thread()                  for debuggers, called by the thread itself
 *     this_thread(), cpu_time_of()        a thread's number, or 0; and its CPU time in ns, or -1 if it is not known
 *     usable_cpus()                       how many CPUs this process should use
 */
#ifndef GDM_OS_H
#define GDM_OS_H

#include <stdint.h>

/* Enough for a tile's scratch memory, of which a worker has at most one or two at a time. The defaults of some systems
 * are 8 MiB (glibc), others 128 KiB (musl). */
enum { THREAD_STACK = 256 * 1024 };

/* Tells the CPU that this thread only looks for work. */
static inline void pause_briefly(void) {
#if defined __x86_64__ || defined __i386__
    __builtin_ia32_pause();
#elif defined __aarch64__
    __asm__ volatile("yield");
#endif
}

#if defined _WIN32
#include "os_windows.h"
#elif defined GDM_NO_THREADS || (defined __wasm__ && !defined _REENTRANT)
#include "os_single.h"
#else
#include "os_posix.h"
#endif

#endif
