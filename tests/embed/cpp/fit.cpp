// The same fit as in C, of a long signal, with the work of each step on threads of the program's own.
#include <gdm/gdm.h>

#include <atomic>
#include <cstdio>
#include <span>
#include <stdexcept>
#include <thread>
#include <vector>

static void blur(std::span<const float> x, std::span<float> out) {
    const std::size_t n = x.size();
    for (std::size_t i = 0; i < n; i++) out[i] = 0.25f * x[(i + n - 1) % n] + x[i] + 0.25f * x[(i + 1) % n];
}

static void momentum(std::span<float> param, std::span<float> velocity, std::span<const float> grad,
                     const gdm_momentum_args &args) {
    if (velocity.size() != param.size() || grad.size() != param.size()) throw std::invalid_argument("lengths differ");
    const gdm_status status = gdm_momentum_f32(param.data(), velocity.data(), grad.data(), param.size(), &args);
    if (status != GDM_OK) throw std::runtime_error(gdm_strerror(status));
}

// A host's way to run pieces of work in parallel; a real one hands them to the thread pool that it has.
struct Host {
    unsigned threads;
    std::atomic<std::size_t> pieces{0};
};

extern "C" void run_on_host(void *host, std::size_t count, gdm_task *task, void *context) {
    std::atomic<std::size_t> next{0};
    const auto work = [&] {
        for (std::size_t i; (i = next++) < count;) task(context, i);
    };
    std::vector<std::jthread> threads;
    for (unsigned i = 1; i < static_cast<Host *>(host)->threads; i++) threads.emplace_back(work);
    work();
    static_cast<Host *>(host)->pieces += count;
}

int main() {
    Host host{2};
    gdm_set_num_threads(static_cast<int>(host.threads));
    gdm_set_parallel_for(run_on_host, &host);

    const std::size_t n = 1 << 20, steps = 20;
    std::vector<float> signal(n), measured(n), residual(n), param(n), velocity(n), grad(n);
    for (std::size_t i = 0; i < n; i++) signal[i] = static_cast<float>(i % 7);
    blur(signal, measured);

    gdm_momentum_args args = GDM_MOMENTUM_DEFAULTS;
    args.lr = 0.1;
    args.weight_decay = 1e-4;
    args.nesterov = 1;
    for (std::size_t step = 0; step <= steps; step++) {
        double loss = 0;
        blur(param, residual);
        for (std::size_t i = 0; i < n; i++) {
            residual[i] -= measured[i];
            loss += 0.5 * residual[i] * residual[i];
        }
        blur(residual, grad);
        if (step % 10 == 0) std::printf("loss %.17g\n", loss);
        momentum(param, velocity, grad, args);
    }
    for (const float p : std::span(param).first(64)) std::printf("param %.9g\n", p);
    std::printf("pieces %zu\n", host.pieces.load());
}
