"""gdm's C functions for Cython: ``from gdm cimport import_gdm, momentum_f32, momentum_args, status``.

Plain names for what gdm/gdm.h declares and documents, taken from the installed package without linking: call
``import_gdm()`` once, at the top of each module. ``gdm.get_include()`` is the folder of the headers.
"""

from libc.stdint cimport uint16_t, uint64_t

cdef extern from "gdm/import.h":
    int import_gdm "gdm_import"() except -1

# >>> declarations: written by tools/generate.py from include/gdm/gdm.h
cdef extern from "gdm/import.h" nogil:
    ctypedef enum status "gdm_status":
        OK "GDM_OK"
        ERR_NULL "GDM_ERR_NULL"
        ERR_STRUCT_SIZE "GDM_ERR_STRUCT_SIZE"
        ERR_LENGTH "GDM_ERR_LENGTH"
        ERR_ALIGNMENT "GDM_ERR_ALIGNMENT"
        ERR_OVERLAP "GDM_ERR_OVERLAP"
        ERR_ISA "GDM_ERR_ISA"
        ERR_MEMORY "GDM_ERR_MEMORY"
        ERR_THREADS "GDM_ERR_THREADS"
        ERR_INDEX "GDM_ERR_INDEX"
        ERR_IMPORT "GDM_ERR_IMPORT"
        ERR_DTYPE "GDM_ERR_DTYPE"
        ERR_LR_FACTOR "GDM_ERR_LR_FACTOR"
        ERR_NONFINITE "GDM_ERR_NONFINITE"
        ERR_STEP_ARGS "GDM_ERR_STEP_ARGS"
        ERR_MODE "GDM_ERR_MODE"
        ERR_LR "GDM_ERR_LR"
        ERR_MOMENTUM "GDM_ERR_MOMENTUM"
        ERR_DAMPENING "GDM_ERR_DAMPENING"
        ERR_WEIGHT_DECAY "GDM_ERR_WEIGHT_DECAY"
        ERR_NESTEROV "GDM_ERR_NESTEROV"
        ERR_FORM "GDM_ERR_FORM"
        ERR_STEP "GDM_ERR_STEP"
        ERR_EPS "GDM_ERR_EPS"
        ERR_BETAS "GDM_ERR_BETAS"
        ERR_ALPHA "GDM_ERR_ALPHA"
        ERR_LR_DECAY "GDM_ERR_LR_DECAY"
        ERR_MOMENTUM_DECAY "GDM_ERR_MOMENTUM_DECAY"
        ERR_MU_PRODUCT "GDM_ERR_MU_PRODUCT"
        ERR_LR_SCALE "GDM_ERR_LR_SCALE"
        ERR_RHO "GDM_ERR_RHO"
        ERR_TRUST_COEFFICIENT "GDM_ERR_TRUST_COEFFICIENT"
        ERR_ETAS "GDM_ERR_ETAS"
        ERR_STEP_SIZES "GDM_ERR_STEP_SIZES"
        ERR_LAMBD "GDM_ERR_LAMBD"
        ERR_T0 "GDM_ERR_T0"
        ERR_ASGD_ALPHA "GDM_ERR_ASGD_ALPHA"
        ERR_ADEMAMIX_ALPHA "GDM_ERR_ADEMAMIX_ALPHA"
        ERR_ADEMAMIX_BETAS "GDM_ERR_ADEMAMIX_BETAS"
        ERR_T_ALPHA "GDM_ERR_T_ALPHA"
        ERR_T_BETA3 "GDM_ERR_T_BETA3"
        ERR_ETA "GDM_ERR_ETA"
        ERR_MU "GDM_ERR_MU"
        ERR_WARMUP_STEPS "GDM_ERR_WARMUP_STEPS"
        ERR_R "GDM_ERR_R"
        ERR_WEIGHT_LR_POWER "GDM_ERR_WEIGHT_LR_POWER"
        ERR_WEIGHT_SUM "GDM_ERR_WEIGHT_SUM"
        ERR_LR_MAX "GDM_ERR_LR_MAX"

    ctypedef enum form "gdm_form":
        FORM_TORCH "GDM_FORM_TORCH"
        FORM_CLASSIC "GDM_FORM_CLASSIC"

    ctypedef enum dtype "gdm_dtype":
        FLOAT32 "GDM_FLOAT32"
        FLOAT64 "GDM_FLOAT64"
        BFLOAT16 "GDM_BFLOAT16"
        FLOAT16 "GDM_FLOAT16"
        INT8 "GDM_INT8"

    ctypedef enum rule "gdm_rule":
        RULE_SGD "GDM_RULE_SGD"
        RULE_MOMENTUM "GDM_RULE_MOMENTUM"
        RULE_ADAGRAD "GDM_RULE_ADAGRAD"
        RULE_RMSPROP "GDM_RULE_RMSPROP"
        RULE_ADAM "GDM_RULE_ADAM"
        RULE_NADAM "GDM_RULE_NADAM"
        RULE_LION "GDM_RULE_LION"
        RULE_SIGN_SGD "GDM_RULE_SIGN_SGD"
        RULE_SIGNUM "GDM_RULE_SIGNUM"
        RULE_RADAM "GDM_RULE_RADAM"
        RULE_ADAMAX "GDM_RULE_ADAMAX"
        RULE_ADADELTA "GDM_RULE_ADADELTA"
        RULE_LARS "GDM_RULE_LARS"
        RULE_LAMB "GDM_RULE_LAMB"
        RULE_RPROP "GDM_RULE_RPROP"
        RULE_ASGD "GDM_RULE_ASGD"
        RULE_ADEMAMIX "GDM_RULE_ADEMAMIX"
        RULE_SCHEDULE_FREE_SGD "GDM_RULE_SCHEDULE_FREE_SGD"
        RULE_SCHEDULE_FREE_ADAMW "GDM_RULE_SCHEDULE_FREE_ADAMW"
        RULE_MUON "GDM_RULE_MUON"

    ctypedef enum rounding "gdm_rounding":
        NEAREST "GDM_NEAREST"
        STOCHASTIC "GDM_STOCHASTIC"

    ctypedef enum nonfinite "gdm_nonfinite":
        PROPAGATE "GDM_PROPAGATE"
        SKIP "GDM_SKIP"
        REFUSE "GDM_REFUSE"

    ctypedef enum mode "gdm_mode":
        TRAIN "GDM_TRAIN"
        EVAL "GDM_EVAL"

    ctypedef enum reduction "gdm_reduction":
        SUM_OF_SQUARES "GDM_SUM_OF_SQUARES"
        LARGEST_MAGNITUDE "GDM_LARGEST_MAGNITUDE"
        NONFINITE_COUNT "GDM_NONFINITE_COUNT"

    ctypedef struct sgd_args "gdm_sgd_args":
        size_t size
        double lr
        double weight_decay
        int maximize
        int decoupled_weight_decay
        const void *lr_scale

    ctypedef struct momentum_args "gdm_momentum_args":
        size_t size
        double lr
        double momentum
        double dampening
        double weight_decay
        int nesterov
        int maximize
        int decoupled_weight_decay
        int form
        const void *lr_scale

    ctypedef struct adagrad_args "gdm_adagrad_args":
        size_t size
        double lr
        double lr_decay
        double eps
        double weight_decay
        int maximize
        uint64_t step
        const void *lr_scale

    ctypedef struct rmsprop_args "gdm_rmsprop_args":
        size_t size
        double lr
        double alpha
        double eps
        double momentum
        double weight_decay
        int centered
        int maximize
        const void *lr_scale

    ctypedef struct adam_args "gdm_adam_args":
        size_t size
        double lr
        double betas[2]
        double eps
        double weight_decay
        int amsgrad
        int maximize
        int decoupled_weight_decay
        uint64_t step
        const void *lr_scale

    ctypedef struct nadam_args "gdm_nadam_args":
        size_t size
        double lr
        double betas[2]
        double eps
        double weight_decay
        double momentum_decay
        int maximize
        int decoupled_weight_decay
        uint64_t step
        const void *lr_scale
        double *mu_product

    ctypedef struct lion_args "gdm_lion_args":
        size_t size
        double lr
        double betas[2]
        double weight_decay
        int maximize
        const void *lr_scale

    ctypedef struct sign_sgd_args "gdm_sign_sgd_args":
        size_t size
        double lr
        double weight_decay
        int maximize
        int decoupled_weight_decay
        const void *lr_scale

    ctypedef struct signum_args "gdm_signum_args":
        size_t size
        double lr
        double momentum
        double weight_decay
        int maximize
        int decoupled_weight_decay
        const void *lr_scale

    ctypedef struct radam_args "gdm_radam_args":
        size_t size
        double lr
        double betas[2]
        double eps
        double weight_decay
        int maximize
        int decoupled_weight_decay
        uint64_t step
        const void *lr_scale

    ctypedef struct adamax_args "gdm_adamax_args":
        size_t size
        double lr
        double betas[2]
        double eps
        double weight_decay
        int maximize
        uint64_t step
        const void *lr_scale

    ctypedef struct adadelta_args "gdm_adadelta_args":
        size_t size
        double lr
        double rho
        double eps
        double weight_decay
        int maximize
        const void *lr_scale

    ctypedef struct lars_args "gdm_lars_args":
        size_t size
        double lr
        double momentum
        double weight_decay
        double trust_coefficient
        int adapt
        int maximize
        const void *lr_scale

    ctypedef struct lamb_args "gdm_lamb_args":
        size_t size
        double lr
        double betas[2]
        double eps
        double weight_decay
        int adapt
        int maximize
        uint64_t step
        const void *lr_scale

    ctypedef struct rprop_args "gdm_rprop_args":
        size_t size
        double lr
        double etas[2]
        double step_sizes[2]
        int maximize
        uint64_t step
        const void *lr_scale

    ctypedef struct asgd_args "gdm_asgd_args":
        size_t size
        double lr
        double lambd
        double alpha
        double t0
        double weight_decay
        int maximize
        uint64_t step
        const void *lr_scale
        double *eta
        double *mu

    ctypedef struct ademamix_args "gdm_ademamix_args":
        size_t size
        double lr
        double betas[3]
        double alpha
        double t_alpha
        double t_beta3
        double eps
        double weight_decay
        int maximize
        uint64_t step
        const void *lr_scale

    ctypedef struct schedule_free_sgd_args "gdm_schedule_free_sgd_args":
        size_t size
        double lr
        double momentum
        double weight_decay
        double warmup_steps
        double r
        double weight_lr_power
        int maximize
        uint64_t step
        const void *lr_scale
        double *weight_sum
        double *lr_max

    ctypedef struct schedule_free_adamw_args "gdm_schedule_free_adamw_args":
        size_t size
        double lr
        double betas[2]
        double eps
        double weight_decay
        double warmup_steps
        double r
        double weight_lr_power
        int maximize
        uint64_t step
        const void *lr_scale
        double *weight_sum
        double *lr_max

    ctypedef struct muon_args "gdm_muon_args":
        size_t size
        double lr
        double momentum
        double weight_decay
        int nesterov
        int maximize
        int prepare
        const void *lr_scale

    ctypedef struct buffer "gdm_buffer":
        void *data
        dtype dtype

    ctypedef struct entry_args "gdm_entry_args":
        size_t size
        size_t group
        size_t n
        buffer param
        buffer grad
        buffer lr_scale
        const buffer *states
        size_t state_count
        double lr_factor
        buffer copy
        buffer average
        uint16_t *low_bits
        float **state_scales

    ctypedef struct step_args "gdm_step_args":
        size_t size
        double scale
        double max_grad_norm
        double max_grad_value
        double average_decay
        int average_correction
        int nonfinite
        int clear_grads
        int rounding
        uint64_t seed

    ctypedef struct step_report "gdm_step_report":
        size_t size
        uint64_t updates
        uint64_t skipped
        double grad_norm
        int was_skipped

    ctypedef struct plan "gdm_plan":
        pass

    ctypedef void task "gdm_task"(void *context, size_t i) noexcept
    ctypedef void parallel_for "gdm_parallel_for"(void *host, size_t count, task *task, void *context) noexcept

    const char *strerror "gdm_strerror"(status status) noexcept
    const char *version "gdm_version"() noexcept
    unsigned abi "gdm_abi"() noexcept
    status sgd_f32 "gdm_sgd_f32"(float *param, const float *grad, size_t n, const sgd_args *args) noexcept
    status sgd_f64 "gdm_sgd_f64"(double *param, const double *grad, size_t n, const sgd_args *args) noexcept
    status momentum_f32 "gdm_momentum_f32"(float *param, float *velocity, const float *grad, size_t n, const momentum_args *args) noexcept
    status momentum_f64 "gdm_momentum_f64"(double *param, double *velocity, const double *grad, size_t n, const momentum_args *args) noexcept
    status adagrad_f32 "gdm_adagrad_f32"(float *param, float *state_sum, const float *grad, size_t n, const adagrad_args *args) noexcept
    status adagrad_f64 "gdm_adagrad_f64"(double *param, double *state_sum, const double *grad, size_t n, const adagrad_args *args) noexcept
    status rmsprop_f32 "gdm_rmsprop_f32"(float *param, float *square_avg, float *grad_avg, float *momentum_buffer, const float *grad, size_t n, const rmsprop_args *args) noexcept
    status rmsprop_f64 "gdm_rmsprop_f64"(double *param, double *square_avg, double *grad_avg, double *momentum_buffer, const double *grad, size_t n, const rmsprop_args *args) noexcept
    status adam_f32 "gdm_adam_f32"(float *param, float *exp_avg, float *exp_avg_sq, float *max_exp_avg_sq, const float *grad, size_t n, const adam_args *args) noexcept
    status adam_f64 "gdm_adam_f64"(double *param, double *exp_avg, double *exp_avg_sq, double *max_exp_avg_sq, const double *grad, size_t n, const adam_args *args) noexcept
    status nadam_f32 "gdm_nadam_f32"(float *param, float *exp_avg, float *exp_avg_sq, const float *grad, size_t n, const nadam_args *args) noexcept
    status nadam_f64 "gdm_nadam_f64"(double *param, double *exp_avg, double *exp_avg_sq, const double *grad, size_t n, const nadam_args *args) noexcept
    status lion_f32 "gdm_lion_f32"(float *param, float *exp_avg, const float *grad, size_t n, const lion_args *args) noexcept
    status lion_f64 "gdm_lion_f64"(double *param, double *exp_avg, const double *grad, size_t n, const lion_args *args) noexcept
    status sign_sgd_f32 "gdm_sign_sgd_f32"(float *param, const float *grad, size_t n, const sign_sgd_args *args) noexcept
    status sign_sgd_f64 "gdm_sign_sgd_f64"(double *param, const double *grad, size_t n, const sign_sgd_args *args) noexcept
    status signum_f32 "gdm_signum_f32"(float *param, float *exp_avg, const float *grad, size_t n, const signum_args *args) noexcept
    status signum_f64 "gdm_signum_f64"(double *param, double *exp_avg, const double *grad, size_t n, const signum_args *args) noexcept
    status radam_f32 "gdm_radam_f32"(float *param, float *exp_avg, float *exp_avg_sq, const float *grad, size_t n, const radam_args *args) noexcept
    status radam_f64 "gdm_radam_f64"(double *param, double *exp_avg, double *exp_avg_sq, const double *grad, size_t n, const radam_args *args) noexcept
    status adamax_f32 "gdm_adamax_f32"(float *param, float *exp_avg, float *exp_inf, const float *grad, size_t n, const adamax_args *args) noexcept
    status adamax_f64 "gdm_adamax_f64"(double *param, double *exp_avg, double *exp_inf, const double *grad, size_t n, const adamax_args *args) noexcept
    status adadelta_f32 "gdm_adadelta_f32"(float *param, float *square_avg, float *acc_delta, const float *grad, size_t n, const adadelta_args *args) noexcept
    status adadelta_f64 "gdm_adadelta_f64"(double *param, double *square_avg, double *acc_delta, const double *grad, size_t n, const adadelta_args *args) noexcept
    status lars_f32 "gdm_lars_f32"(float *param, float *velocity, const float *grad, size_t n, const lars_args *args) noexcept
    status lars_f64 "gdm_lars_f64"(double *param, double *velocity, const double *grad, size_t n, const lars_args *args) noexcept
    status lamb_f32 "gdm_lamb_f32"(float *param, float *exp_avg, float *exp_avg_sq, const float *grad, size_t n, const lamb_args *args) noexcept
    status lamb_f64 "gdm_lamb_f64"(double *param, double *exp_avg, double *exp_avg_sq, const double *grad, size_t n, const lamb_args *args) noexcept
    status rprop_f32 "gdm_rprop_f32"(float *param, float *prev, float *step_size, const float *grad, size_t n, const rprop_args *args) noexcept
    status rprop_f64 "gdm_rprop_f64"(double *param, double *prev, double *step_size, const double *grad, size_t n, const rprop_args *args) noexcept
    status asgd_f32 "gdm_asgd_f32"(float *param, float *ax, const float *grad, size_t n, const asgd_args *args) noexcept
    status asgd_f64 "gdm_asgd_f64"(double *param, double *ax, const double *grad, size_t n, const asgd_args *args) noexcept
    status ademamix_f32 "gdm_ademamix_f32"(float *param, float *exp_avg, float *exp_avg_slow, float *exp_avg_sq, const float *grad, size_t n, const ademamix_args *args) noexcept
    status ademamix_f64 "gdm_ademamix_f64"(double *param, double *exp_avg, double *exp_avg_slow, double *exp_avg_sq, const double *grad, size_t n, const ademamix_args *args) noexcept
    status schedule_free_sgd_f32 "gdm_schedule_free_sgd_f32"(float *param, float *z, const float *grad, size_t n, const schedule_free_sgd_args *args) noexcept
    status schedule_free_sgd_f64 "gdm_schedule_free_sgd_f64"(double *param, double *z, const double *grad, size_t n, const schedule_free_sgd_args *args) noexcept
    status schedule_free_adamw_f32 "gdm_schedule_free_adamw_f32"(float *param, float *z, float *exp_avg_sq, const float *grad, size_t n, const schedule_free_adamw_args *args) noexcept
    status schedule_free_adamw_f64 "gdm_schedule_free_adamw_f64"(double *param, double *z, double *exp_avg_sq, const double *grad, size_t n, const schedule_free_adamw_args *args) noexcept
    status muon_f32 "gdm_muon_f32"(float *param, float *velocity, float *update, const float *grad, size_t n, const muon_args *args) noexcept
    status muon_f64 "gdm_muon_f64"(double *param, double *velocity, double *update, const double *grad, size_t n, const muon_args *args) noexcept
    status plan_create "gdm_plan_create"(plan **plan) noexcept
    void plan_destroy "gdm_plan_destroy"(plan *plan) noexcept
    status plan_add_group "gdm_plan_add_group"(plan *plan, rule rule, const void *args, size_t *group) noexcept
    status plan_set_args "gdm_plan_set_args"(plan *plan, size_t group, const void *args) noexcept
    status plan_set_lr "gdm_plan_set_lr"(plan *plan, size_t group, double lr) noexcept
    status plan_add "gdm_plan_add"(plan *plan, const entry_args *args, size_t *entry) noexcept
    status plan_set_grad "gdm_plan_set_grad"(plan *plan, size_t entry, buffer grad) noexcept
    status plan_set_lr_scale "gdm_plan_set_lr_scale"(plan *plan, size_t entry, buffer lr_scale) noexcept
    status plan_set_lr_factor "gdm_plan_set_lr_factor"(plan *plan, size_t entry, double lr_factor) noexcept
    status plan_set_num_threads "gdm_plan_set_num_threads"(plan *plan, int n) noexcept
    status plan_set_step_args "gdm_plan_set_step_args"(plan *plan, const step_args *args) noexcept
    status plan_set_scale "gdm_plan_set_scale"(plan *plan, double scale) noexcept
    status plan_step "gdm_plan_step"(plan *plan) noexcept
    status plan_prepare "gdm_plan_prepare"(plan *plan) noexcept
    status plan_swap "gdm_plan_swap"(plan *plan, mode mode) noexcept
    status plan_set_mode "gdm_plan_set_mode"(plan *plan, mode mode) noexcept
    status plan_get_mode "gdm_plan_get_mode"(const plan *plan, mode *mode) noexcept
    status plan_get_report "gdm_plan_get_report"(const plan *plan, step_report *report) noexcept
    status plan_set_updates "gdm_plan_set_updates"(plan *plan, uint64_t updates, uint64_t skipped) noexcept
    status plan_get_progress "gdm_plan_get_progress"(const plan *plan, size_t entry, uint64_t *steps, double *scalars) noexcept
    status plan_set_progress "gdm_plan_set_progress"(plan *plan, size_t entry, uint64_t steps, const double *scalars) noexcept
    status plan_get_group_steps "gdm_plan_get_group_steps"(const plan *plan, size_t group, uint64_t *steps) noexcept
    status plan_set_group_steps "gdm_plan_set_group_steps"(plan *plan, size_t group, uint64_t steps) noexcept
    status plan_get_error "gdm_plan_get_error"(const plan *plan, size_t *entry, size_t *other) noexcept
    status reduce "gdm_reduce"(reduction reduction, const buffer *buffers, const size_t *lengths, size_t count, double *result) noexcept
    status plan_reduce "gdm_plan_reduce"(plan *plan, reduction reduction, double *result) noexcept
    status accumulate "gdm_accumulate"(const buffer *totals, const buffer *grads, const size_t *lengths, size_t count, double scale) noexcept
    const char *isa "gdm_isa"() noexcept
    const char *available_isa "gdm_available_isa"(size_t i) noexcept
    status set_isa "gdm_set_isa"(const char *name) noexcept
    int get_num_threads "gdm_get_num_threads"() noexcept
    status set_num_threads "gdm_set_num_threads"(int n) noexcept
    void set_parallel_for "gdm_set_parallel_for"(parallel_for *parallel_for, void *host) noexcept
# <<< declarations

