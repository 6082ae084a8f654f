/* gdm for extension modules of Python, without linking: the functions of gdm.h, taken from the installed package.
 *
 *     #include <gdm/import.h>          instead of <gdm/gdm.h>; finds Python.h
 *
 *     if (gdm_import() < 0) return NULL;          once, in the module's init function, in each file that calls gdm
 *
 * All such modules share one gdm: its instruction set and its threads. The installed gdm may be newer than the one a
 * module was compiled against. If it is older and lacks a function, or has another ABI, gdm_import raises an
 * ImportError. Before gdm_import, all functions return GDM_ERR_IMPORT (or NULL, or 0).
 */
#ifndef GDM_IMPORT_H
#define GDM_IMPORT_H

#include <Python.h>
#include <string.h> /* Python.h leaves it out under Py_LIMITED_API */

#include "gdm.h"

/* Every function of gdm.h, and what it returns before gdm_import(). */
/* >>> functions: written by tools/generate.py from csrc/rules.def */
#define GDM_IMPORTED_FUNCTIONS(X)                                                                                      \
    X(strerror, pointer)                                                                                               \
    X(version, pointer)                                                                                                \
    X(abi, number)                                                                                                     \
    X(sgd_f32, status)                                                                                                 \
    X(sgd_f64, status)                                                                                                 \
    X(momentum_f32, status)                                                                                            \
    X(momentum_f64, status)                                                                                            \
    X(adagrad_f32, status)                                                                                             \
    X(adagrad_f64, status)                                                                                             \
    X(rmsprop_f32, status)                                                                                             \
    X(rmsprop_f64, status)                                                                                             \
    X(adam_f32, status)                                                                                                \
    X(adam_f64, status)                                                                                                \
    X(nadam_f32, status)                                                                                               \
    X(nadam_f64, status)                                                                                               \
    X(lion_f32, status)                                                                                                \
    X(lion_f64, status)                                                                                                \
    X(sign_sgd_f32, status)                                                                                            \
    X(sign_sgd_f64, status)                                                                                            \
    X(signum_f32, status)                                                                                              \
    X(signum_f64, status)                                                                                              \
    X(radam_f32, status)                                                                                               \
    X(radam_f64, status)                                                                                               \
    X(adamax_f32, status)                                                                                              \
    X(adamax_f64, status)                                                                                              \
    X(adadelta_f32, status)                                                                                            \
    X(adadelta_f64, status)                                                                                            \
    X(lars_f32, status)                                                                                                \
    X(lars_f64, status)                                                                                                \
    X(lamb_f32, status)                                                                                                \
    X(lamb_f64, status)                                                                                                \
    X(rprop_f32, status)                                                                                               \
    X(rprop_f64, status)                                                                                               \
    X(asgd_f32, status)                                                                                                \
    X(asgd_f64, status)                                                                                                \
    X(ademamix_f32, status)                                                                                            \
    X(ademamix_f64, status)                                                                                            \
    X(schedule_free_sgd_f32, status)                                                                                   \
    X(schedule_free_sgd_f64, status)                                                                                   \
    X(schedule_free_adamw_f32, status)                                                                                 \
    X(schedule_free_adamw_f64, status)                                                                                 \
    X(muon_f32, status)                                                                                                \
    X(muon_f64, status)                                                                                                \
    X(plan_create, status)                                                                                             \
    X(plan_destroy, number)                                                                                            \
    X(plan_add_group, status)                                                                                          \
    X(plan_set_args, status)                                                                                           \
    X(plan_set_lr, status)                                                                                             \
    X(plan_add, status)                                                                                                \
    X(plan_set_grad, status)                                                                                           \
    X(plan_set_lr_scale, status)                                                                                       \
    X(plan_set_lr_factor, status)                                                                                      \
    X(plan_set_num_threads, status)                                                                                    \
    X(plan_set_step_args, status)                                                                                      \
    X(plan_set_scale, status)                                                                                          \
    X(plan_step, status)                                                                                               \
    X(plan_prepare, status)                                                                                            \
    X(plan_swap, status)                                                                                               \
    X(plan_set_mode, status)                                                                                           \
    X(plan_get_mode, status)                                                                                           \
    X(plan_get_report, status)                                                                                         \
    X(plan_set_updates, status)                                                                                        \
    X(plan_get_progress, status)                                                                                       \
    X(plan_set_progress, status)                                                                                       \
    X(plan_get_group_steps, status)                                                                                    \
    X(plan_set_group_steps, status)                                                                                    \
    X(plan_get_error, status)                                                                                          \
    X(reduce, status)                                                                                                  \
    X(plan_reduce, status)                                                                                             \
    X(accumulate, status)                                                                                              \
    X(isa, pointer)                                                                                                    \
    X(available_isa, pointer)                                                                                          \
    X(set_isa, status)                                                                                                 \
    X(get_num_threads, number)                                                                                         \
    X(set_num_threads, status)                                                                                         \
    X(set_parallel_for, number)
/* <<< functions */

static inline gdm_status gdm_not_imported_status(void) {
    return GDM_ERR_IMPORT;
}

static inline const void *gdm_not_imported_pointer(void) {
    return NULL;
}

static inline int gdm_not_imported_number(void) {
    return 0;
}

static struct {
#define GDM_POINTER(name, failed) __typeof__(gdm_##name) *name;
    GDM_IMPORTED_FUNCTIONS(GDM_POINTER)
#undef GDM_POINTER
} gdm_imported = {
#define GDM_STUB(name, failed) (__typeof__(gdm_##name) *)(void (*)(void))gdm_not_imported_##failed,
    GDM_IMPORTED_FUNCTIONS(GDM_STUB)
#undef GDM_STUB
};

/* Returns 0, or -1 with an ImportError set. Needs the GIL. */
static inline int gdm_import(void) {
    static const char *const names[] = {
#define GDM_NAME(name, failed) "gdm_" #name,
        GDM_IMPORTED_FUNCTIONS(GDM_NAME)
#undef GDM_NAME
    };
    const gdm_table *table = (const gdm_table *)PyCapsule_Import("gdm._core.c_api", 0);
    if (!table) {
        if (!PyErr_ExceptionMatches(PyExc_ImportError))
            PyErr_SetString(PyExc_ImportError, "gdm's compiled module does not load here: see python -m gdm info");
        return -1;
    }
    if (table->abi != GDM_ABI) {
        PyErr_Format(PyExc_ImportError,
                     "this module was compiled for gdm %s, whose ABI is %u; installed is gdm %s, whose ABI is %u: "
                     "compile the module again",
                     GDM_VERSION, (unsigned)GDM_ABI, table->version, table->abi);
        return -1;
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        size_t k = 0;
        while (k < table->count && strcmp(table->functions[k].name, names[i]) != 0) k++;
        if (k == table->count) {
            PyErr_Format(PyExc_ImportError,
                         "this module was compiled for gdm %s; installed is gdm %s, which has no %s: upgrade gdm",
                         GDM_VERSION, table->version, names[i]);
            return -1;
        }
        memcpy((char *)&gdm_imported + i * sizeof(void (*)(void)), &table->functions[k].address,
               sizeof(void (*)(void)));
    }
    return 0;
}

/* >>> macros: written by tools/generate.py from csrc/rules.def */
#define gdm_strerror gdm_imported.strerror
#define gdm_version gdm_imported.version
#define gdm_abi gdm_imported.abi
#define gdm_sgd_f32 gdm_imported.sgd_f32
#define gdm_sgd_f64 gdm_imported.sgd_f64
#define gdm_momentum_f32 gdm_imported.momentum_f32
#define gdm_momentum_f64 gdm_imported.momentum_f64
#define gdm_adagrad_f32 gdm_imported.adagrad_f32
#define gdm_adagrad_f64 gdm_imported.adagrad_f64
#define gdm_rmsprop_f32 gdm_imported.rmsprop_f32
#define gdm_rmsprop_f64 gdm_imported.rmsprop_f64
#define gdm_adam_f32 gdm_imported.adam_f32
#define gdm_adam_f64 gdm_imported.adam_f64
#define gdm_nadam_f32 gdm_imported.nadam_f32
#define gdm_nadam_f64 gdm_imported.nadam_f64
#define gdm_lion_f32 gdm_imported.lion_f32
#define gdm_lion_f64 gdm_imported.lion_f64
#define gdm_sign_sgd_f32 gdm_imported.sign_sgd_f32
#define gdm_sign_sgd_f64 gdm_imported.sign_sgd_f64
#define gdm_signum_f32 gdm_imported.signum_f32
#define gdm_signum_f64 gdm_imported.signum_f64
#define gdm_radam_f32 gdm_imported.radam_f32
#define gdm_radam_f64 gdm_imported.radam_f64
#define gdm_adamax_f32 gdm_imported.adamax_f32
#define gdm_adamax_f64 gdm_imported.adamax_f64
#define gdm_adadelta_f32 gdm_imported.adadelta_f32
#define gdm_adadelta_f64 gdm_imported.adadelta_f64
#define gdm_lars_f32 gdm_imported.lars_f32
#define gdm_lars_f64 gdm_imported.lars_f64
#define gdm_lamb_f32 gdm_imported.lamb_f32
#define gdm_lamb_f64 gdm_imported.lamb_f64
#define gdm_rprop_f32 gdm_imported.rprop_f32
#define gdm_rprop_f64 gdm_imported.rprop_f64
#define gdm_asgd_f32 gdm_imported.asgd_f32
#define gdm_asgd_f64 gdm_imported.asgd_f64
#define gdm_ademamix_f32 gdm_imported.ademamix_f32
#define gdm_ademamix_f64 gdm_imported.ademamix_f64
#define gdm_schedule_free_sgd_f32 gdm_imported.schedule_free_sgd_f32
#define gdm_schedule_free_sgd_f64 gdm_imported.schedule_free_sgd_f64
#define gdm_schedule_free_adamw_f32 gdm_imported.schedule_free_adamw_f32
#define gdm_schedule_free_adamw_f64 gdm_imported.schedule_free_adamw_f64
#define gdm_muon_f32 gdm_imported.muon_f32
#define gdm_muon_f64 gdm_imported.muon_f64
#define gdm_plan_create gdm_imported.plan_create
#define gdm_plan_destroy gdm_imported.plan_destroy
#define gdm_plan_add_group gdm_imported.plan_add_group
#define gdm_plan_set_args gdm_imported.plan_set_args
#define gdm_plan_set_lr gdm_imported.plan_set_lr
#define gdm_plan_add gdm_imported.plan_add
#define gdm_plan_set_grad gdm_imported.plan_set_grad
#define gdm_plan_set_lr_scale gdm_imported.plan_set_lr_scale
#define gdm_plan_set_lr_factor gdm_imported.plan_set_lr_factor
#define gdm_plan_set_num_threads gdm_imported.plan_set_num_threads
#define gdm_plan_set_step_args gdm_imported.plan_set_step_args
#define gdm_plan_set_scale gdm_imported.plan_set_scale
#define gdm_plan_step gdm_imported.plan_step
#define gdm_plan_prepare gdm_imported.plan_prepare
#define gdm_plan_swap gdm_imported.plan_swap
#define gdm_plan_set_mode gdm_imported.plan_set_mode
#define gdm_plan_get_mode gdm_imported.plan_get_mode
#define gdm_plan_get_report gdm_imported.plan_get_report
#define gdm_plan_set_updates gdm_imported.plan_set_updates
#define gdm_plan_get_progress gdm_imported.plan_get_progress
#define gdm_plan_set_progress gdm_imported.plan_set_progress
#define gdm_plan_get_group_steps gdm_imported.plan_get_group_steps
#define gdm_plan_set_group_steps gdm_imported.plan_set_group_steps
#define gdm_plan_get_error gdm_imported.plan_get_error
#define gdm_reduce gdm_imported.reduce
#define gdm_plan_reduce gdm_imported.plan_reduce
#define gdm_accumulate gdm_imported.accumulate
#define gdm_isa gdm_imported.isa
#define gdm_available_isa gdm_imported.available_isa
#define gdm_set_isa gdm_imported.set_isa
#define gdm_get_num_threads gdm_imported.get_num_threads
#define gdm_set_num_threads gdm_imported.set_num_threads
#define gdm_set_parallel_for gdm_imported.set_parallel_for
/* <<< macros */

#endif
