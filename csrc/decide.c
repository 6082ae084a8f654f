/* What a step decides before it updates: the factor of the gradients, and whether it is skipped. */
#include "plan.h"

#include <math.h>
#include <string.h>

/* The norm of all gradients, NaN if it is not needed; and whether they are finite. */
static gdm_status find_norm(gdm_plan *plan, double *norm, int *finite) {
    double result;
    const int by_norm = plan->around.max_grad_norm > 0;
    gdm_status status = gdm_plan_reduce(plan, by_norm ? GDM_SUM_OF_SQUARES : GDM_NONFINITE_COUNT, &result);
    if (status) return status;
    *finite = by_norm ? result - result == 0 : result == 0;
    *norm = by_norm ? sqrt(result) * fabs(plan->around.scale) : NAN;
    /* The squares of large finite numbers may be infinite. */
    if (by_norm && !*finite && plan->around.nonfinite != GDM_PROPAGATE) {
        status = gdm_plan_reduce(plan, GDM_NONFINITE_COUNT, &result);
        *finite = result == 0;
    }
    return status;
}

void gdm_plan_skip(gdm_plan *plan) {
    plan->skipped++;
    if (!plan->around.clear_grads) return;
    for (size_t i = 0; i < plan->count; i++)
        if (plan->entries[i].data[GRAD] && plan->entries[i].n)
            memset(plan->entries[i].data[GRAD], 0,
                   plan->entries[i].n * size_of((enum dtype)plan->details[i].dtypes[GRAD]));
}

static void set_kernel_factor(gdm_plan *plan, double factor) {
    if (!has_other_bits(factor, plan->stages.kernel_factor)) return;
    plan->stages.kernel_factor = factor;
    for (size_t g = 0; g < plan->group_count; g++) plan->groups[g].stale = 1;
}

gdm_status gdm_plan_decide(gdm_plan *plan) {
    const gdm_step_args *around = &plan->around;
    struct stages *stages = &plan->stages;
    double norm = NAN, factor = around->scale;
    int finite = 1;
    if (around->max_grad_norm > 0 || around->nonfinite != GDM_PROPAGATE) {
        const gdm_status status = find_norm(plan, &norm, &finite);
        if (status) return status;
        if (!finite && around->nonfinite == GDM_REFUSE) return GDM_ERR_NONFINITE;
    }
    plan->grad_norm = norm;
    plan->was_skipped = !finite && around->nonfinite == GDM_SKIP;
    if (plan->was_skipped) return GDM_OK;
    if (around->max_grad_norm > 0) {
        const double clip = around->max_grad_norm / (norm + 1e-6);
        if (!(clip >= 1)) factor = factor * clip; /* NaN, too */
    }
    stages->limit = around->max_grad_value;
    stages->factor = stages->limit > 0 ? factor : 1.0;
    set_kernel_factor(plan, stages->limit > 0 ? 1.0 : factor);
    stages->clear = (uint8_t)(around->clear_grads != 0);
    stages->on_all = (uint8_t)(stages->limit > 0 || stages->clear);
    stages->weight = 1.0 - around->average_decay;
    if (around->average_correction) stages->weight /= 1.0 - power(around->average_decay, plan->updates + 1, NULL);
    plan->asks = around->max_grad_norm > 0 || around->nonfinite != GDM_PROPAGATE || around->average_correction;
    return GDM_OK;
}
