/* Finds a signal on a ring from a blurred measurement of it: least squares by gradient descent with momentum. */
#include <gdm/gdm.h>
#include <stdio.h>

enum { N = 64, STEPS = 50 };

/* A linear map that is its own transpose. */
static void blur(const float *x, float *out) {
    for (int i = 0; i < N; i++) out[i] = 0.25f * x[(i + N - 1) % N] + x[i] + 0.25f * x[(i + 1) % N];
}

int main(void) {
    float signal[N], measured[N], residual[N], param[N] = {0}, velocity[N] = {0}, grad[N];
    for (int i = 0; i < N; i++) signal[i] = (float)(i % 7);
    blur(signal, measured);

    gdm_momentum_args args = GDM_MOMENTUM_DEFAULTS;
    args.lr = 0.1;
    args.weight_decay = 1e-4;
    args.nesterov = 1;
    for (int step = 0; step <= STEPS; step++) {
        double loss = 0;
        blur(param, residual);
        for (int i = 0; i < N; i++) {
            residual[i] -= measured[i];
            loss += 0.5 * residual[i] * residual[i];
        }
        blur(residual, grad);
        if (step % 10 == 0) printf("loss %.17g\n", loss);

        gdm_status status = gdm_momentum_f32(param, velocity, grad, N, &args);
        if (status != GDM_OK) {
            fprintf(stderr, "gdm: %s\n", gdm_strerror(status));
            return 1;
        }
    }
    for (int i = 0; i < N; i++) printf("param %.9g\n", param[i]);
    return 0;
}
