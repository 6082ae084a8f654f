"""gdm's C functions for Cython: ``from gdm cimport momentum_f32, momentum_args, status``.

Plain names for what gdm/gdm.h declares and documents. A module that calls the functions links lib/libgdm.a from the
installed package; ``gdm.get_include()`` is the folder of the header.
"""

cdef extern from "gdm/gdm.h" nogil:
    ctypedef enum status "gdm_status":
        OK "GDM_OK"
        ERR_NULL "GDM_ERR_NULL"
        ERR_STRUCT_SIZE "GDM_ERR_STRUCT_SIZE"
        ERR_LENGTH "GDM_ERR_LENGTH"
        ERR_ALIGNMENT "GDM_ERR_ALIGNMENT"
        ERR_OVERLAP "GDM_ERR_OVERLAP"
        ERR_LR "GDM_ERR_LR"
        ERR_WEIGHT_DECAY "GDM_ERR_WEIGHT_DECAY"
        ERR_MOMENTUM "GDM_ERR_MOMENTUM"
        ERR_DAMPENING "GDM_ERR_DAMPENING"
        ERR_NESTEROV "GDM_ERR_NESTEROV"
        ERR_FORM "GDM_ERR_FORM"
        ERR_ISA "GDM_ERR_ISA"
        ERR_MEMORY "GDM_ERR_MEMORY"
        ERR_THREADS "GDM_ERR_THREADS"

    ctypedef enum form "gdm_form":
        FORM_TORCH "GDM_FORM_TORCH"
        FORM_CLASSIC "GDM_FORM_CLASSIC"

    ctypedef struct sgd_args "gdm_sgd_args":
        size_t size
        double lr
        double weight_decay
        int maximize
        int decoupled_weight_decay

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

    status sgd_f32 "gdm_sgd_f32"(float *param, const float *grad, size_t n, const sgd_args *args) noexcept
    status sgd_f64 "gdm_sgd_f64"(double *param, const double *grad, size_t n, const sgd_args *args) noexcept
    status momentum_f32 "gdm_momentum_f32"(
        float *param, float *velocity, const float *grad, size_t n, const momentum_args *args) noexcept
    status momentum_f64 "gdm_momentum_f64"(
        double *param, double *velocity, const double *grad, size_t n, const momentum_args *args) noexcept

    const char *strerror "gdm_strerror"(status) noexcept
    const char *version "gdm_version"() noexcept
    const char *isa "gdm_isa"() noexcept
    const char *available_isa "gdm_available_isa"(size_t i) noexcept
    status set_isa "gdm_set_isa"(const char *name) noexcept

    int get_num_threads "gdm_get_num_threads"() noexcept
    status set_num_threads "gdm_set_num_threads"(int n) noexcept
