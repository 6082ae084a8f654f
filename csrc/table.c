#include "gdm/gdm.h"

#define GDM_FUNCTION(name, signature) {#name, (void (*)(void))name, signature},
static const gdm_function functions[] = {
#include "functions.inc"
};

const gdm_table *gdm_get_table(void) {
    static const gdm_table table = {
        sizeof table, GDM_ABI, GDM_VERSION, functions, sizeof functions / sizeof *functions,
    };
    return &table;
}
