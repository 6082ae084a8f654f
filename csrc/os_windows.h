/* os.h for Windows, from Windows 8 and Server 2012 on. */
#ifndef _WIN32_WINNT
#define _WIN32_WINNT 0x0602
#endif
#define WIN32_LEAN_AND_MEAN
#define INT8 INT8_OF_WINDOWS /* a type there, a dtype in core.h */
#include <windows.h>
#undef INT8

#define HAS_THREADS 1
#define HAS_FORK 0

static inline int64_t now_ns(void) {
    LARGE_INTEGER frequency, t;
    QueryPerformanceFrequency(&frequency);
    QueryPerformanceCounter(&t);
    const int64_t second = frequency.QuadPart;
    return t.QuadPart / second * 1000000000 + t.QuadPart % second * 1000000000 / second;
}

static inline void give_way(void) {
    SwitchToThread();
}

struct monitor {
    SRWLOCK lock;
    CONDITION_VARIABLE wake;
};
#define MONITOR {SRWLOCK_INIT, CONDITION_VARIABLE_INIT}

static inline void enter(struct monitor *monitor) {
    AcquireSRWLockExclusive(&monitor->lock);
}

static inline void leave(struct monitor *monitor) {
    ReleaseSRWLockExclusive(&monitor->lock);
}

static inline void sleep_in(struct monitor *monitor) {
    SleepConditionVariableSRW(&monitor->wake, &monitor->lock, INFINITE, 0);
}

static inline void wake_all_in(struct monitor *monitor) {
    WakeAllConditionVariable(&monitor->wake);
}

typedef HANDLE thread;
#define THREAD_RESULT DWORD WINAPI

/* Threads run to the end of the process, which ends them itself, before it calls any destructor. A DLL could not wait
 * for them when it is unloaded, because a thread that ends needs the lock that the unloading thread holds. So a DLL
 * with threads stays loaded. */
static inline int start_thread(thread *out, LPTHREAD_START_ROUTINE run, void *context) {
    HMODULE module;
    GetModuleHandleExW(GET_MODULE_HANDLE_EX_FLAG_PIN | GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS, (LPCWSTR)(uintptr_t)run,
                       &module);
    *out = CreateThread(NULL, THREAD_STACK, run, context, STACK_SIZE_PARAM_IS_A_RESERVATION, NULL);
    return *out != NULL;
}

static inline void join_thread(thread which) {
    WaitForSingleObject(which, INFINITE);
    CloseHandle(which);
}

/* Windows 10 and later have this function. */
static inline void name_this_thread(void) {
    typedef HRESULT WINAPI describe(HANDLE thread, const wchar_t *name);
    describe *const found =
        (describe *)(void (*)(void))GetProcAddress(GetModuleHandleW(L"kernel32.dll"), "SetThreadDescription");
    if (found) found(GetCurrentThread(), L"gdm");
}

/* The system counts CPU time in steps of 16 ms, too long for its only use. */
static inline int this_thread(void) {
    return 0;
}

static inline int64_t cpu_time_of(int which) {
    (void)which;
    return -1;
}

/* The CPUs that the limit of a job object allows, as containers have, rounded up; 0 without a limit. */
static inline long cpus_of_job(void) {
    JOBOBJECT_CPU_RATE_CONTROL_INFORMATION limit = {0};
    if (!QueryInformationJobObject(NULL, JobObjectCpuRateControlInformation, &limit, sizeof limit, NULL)) return 0;
    if (!(limit.ControlFlags & JOB_OBJECT_CPU_RATE_CONTROL_ENABLE)) return 0;
    if (!(limit.ControlFlags & JOB_OBJECT_CPU_RATE_CONTROL_HARD_CAP)) return 0;
    const uint64_t all = GetActiveProcessorCount(ALL_PROCESSOR_GROUPS);
    return (long)((limit.CpuRate * all + 9999) / 10000); /* of all CPUs, in 1/10,000 */
}

/* Those of its own group of at most 64, unless the process has been spread over several groups. */
static inline long usable_cpus(void) {
    DWORD_PTR own, all;
    long n = 0;
    if (GetProcessAffinityMask(GetCurrentProcess(), &own, &all))
        for (; own; own &= own - 1) n++;
    if (!n) n = (long)GetActiveProcessorCount(ALL_PROCESSOR_GROUPS); /* in several groups, both masks are 0 */
    const long allowed = cpus_of_job();
    return allowed && allowed < n ? allowed : n;
}
