/* Loads gdm as a shared library, whose path is the argument, steps with threads, and unloads it, several times. Exits
 * with 1 and says what is wrong. At the end the process exits while the library's threads may be asleep or at work. */
#include "gdm/gdm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined _WIN32
#include <windows.h>
#define STAYS_WITH_THREADS 1 /* see start_thread() in csrc/os_windows.h */
#else
#include <dlfcn.h>
#define STAYS_WITH_THREADS 0
#endif

enum { N = 1 << 20, TIMES = 6, STEPS = 20 };
static float param[N], velocity[N], grad[N];

static void fail(const char *what) {
    fprintf(stderr, "FAILED: %s\n", what);
    exit(1);
}

#if defined _WIN32
typedef HMODULE library;
static library load(const char *path) {
    return LoadLibraryA(path);
}

static void unload(library it) {
    FreeLibrary(it);
}

static int is_loaded(const char *path) {
    return GetModuleHandleA(path) != NULL;
}

static const gdm_table *table_of(library it) {
    typedef const gdm_table *get_table(void);
    return ((get_table *)(void (*)(void))GetProcAddress(it, "gdm_get_table"))();
}
#else
typedef void *library;
static library load(const char *path) {
    return dlopen(path, RTLD_NOW | RTLD_LOCAL);
}

static void unload(library it) {
    dlclose(it);
}

static int is_loaded(const char *path) {
    library it = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
    if (it) dlclose(it);
    return it != NULL;
}

static const gdm_table *table_of(library it) {
    typedef const gdm_table *get_table(void);
    get_table *found;
    *(void **)&found = dlsym(it, "gdm_get_table");
    return found();
}
#endif

/* The function of the table with this name, of the type of the header's. */
#define CALL(table, name) ((__typeof__(name) *)find(table, #name))

static void (*find(const gdm_table *table, const char *name))(void) {
    for (size_t i = 0; i < table->count; i++)
        if (!strcmp(table->functions[i].name, name)) return table->functions[i].address;
    fail(name);
    return NULL;
}

static void step(const gdm_table *table, int threads) {
    const gdm_momentum_args options = {.size = sizeof options, .lr = 0.1, .momentum = 0.9};
    const gdm_buffer state = {velocity, GDM_FLOAT32};
    gdm_entry_args added = GDM_ENTRY_DEFAULTS;
    gdm_plan *plan;
    size_t entry;
    added.n = N;
    added.param.data = param;
    added.grad.data = grad;
    added.states = &state;
    added.state_count = 1;
    if (CALL(table, gdm_plan_create)(&plan)) fail("gdm_plan_create");
    if (CALL(table, gdm_plan_add_group)(plan, GDM_RULE_MOMENTUM, &options, &added.group)) fail("gdm_plan_add_group");
    if (CALL(table, gdm_plan_add)(plan, &added, &entry)) fail("gdm_plan_add");
    if (CALL(table, gdm_plan_set_num_threads)(plan, threads)) fail("gdm_plan_set_num_threads");
    for (int i = 0; i < STEPS; i++)
        if (CALL(table, gdm_plan_step)(plan)) fail("gdm_plan_step");
    CALL(table, gdm_plan_destroy)(plan);
}

static void load_step_unload(const char *path, int threads, int stays) {
    const library it = load(path);
    if (!it) fail("the library does not load");
    for (size_t i = 0; i < N; i++) param[i] = velocity[i] = 0, grad[i] = 1;
    step(table_of(it), threads);
    if (param[0] >= 0 || memcmp(param, param + 1, sizeof param - sizeof *param)) fail("a wrong result");
    unload(it);
    if (is_loaded(path) != stays) fail(stays ? "the library has been unloaded under its threads" : "still loaded");
}

int main(int count, char **arguments) {
    if (count != 2) fail("the path of the library is missing");
    for (int i = 0; i < TIMES; i++) load_step_unload(arguments[1], 1, 0);
    for (int i = 0; i < TIMES; i++) load_step_unload(arguments[1], 2 + i % 3, STAYS_WITH_THREADS);
    step(table_of(load(arguments[1])), 4);
    return 0;
}
