/* The library itself: its version, and its statuses in words. */
#include "gdm/gdm.h"

const char *gdm_version(void) {
    return GDM_VERSION;
}

unsigned gdm_abi(void) {
    return GDM_ABI;
}

const char *gdm_strerror(gdm_status status) {
    switch ((int)status) {
    case GDM_OK: return "success";
    case GDM_ERR_NULL: return "a buffer, the argument struct or a plan is NULL";
    case GDM_ERR_STRUCT_SIZE: return "the size field of the argument struct is wrong, or unknown fields are set";
    case GDM_ERR_LENGTH: return "the buffers would not fit into the address space";
    case GDM_ERR_ALIGNMENT: return "a buffer is not aligned to its element type";
    case GDM_ERR_OVERLAP: return "two buffers share memory";
    case GDM_ERR_ISA: return "unknown instruction set, or one that this machine cannot run";
    case GDM_ERR_MEMORY: return "out of memory";
    case GDM_ERR_THREADS: return "the number of threads must be between 1 and 256";
    case GDM_ERR_INDEX: return "there is no such rule, reduction, group, entry or state";
    case GDM_ERR_DTYPE: return "there is no such dtype, or the dtypes of an entry are not supported together";
    case GDM_ERR_LR_FACTOR:
        return "lr_factor and lr times lr_factor must be finite in the compute dtype and not negative";
    case GDM_ERR_NONFINITE: return "a gradient is NaN or infinite";
    case GDM_ERR_STEP_ARGS: return "a field of the step's argument struct is out of range";
    case GDM_ERR_MODE: return "there is no such mode, or the plan is in GDM_EVAL, in which it makes no step";
    case GDM_ERR_IMPORT: return "gdm_import() has not been called, or has failed";
    default: break;
    }
#define GDM_OPTION(name, kind, number, must, meaning)                                                                  \
    if (number && (int)status == number) return #name " " must;
#include "rules.def"
#define GDM_SCALAR(name, initial, domain, number, must, meaning)                                                       \
    if ((int)status == number) return #name " " must;
#include "rules.def"
    return "unknown status";
}
