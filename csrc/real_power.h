/* Powers with real exponents, logarithms and exponentials in a fixed order of + - * /, since libraries' differ between
 * machines. The relative error of a power is below 1e-14, also where it is huge or tiny: a logarithm is the sum of two
 * doubles, since its error is multiplied by up to 745. reference/real_power.py is the same in Python.
 */
#ifndef GDM_REAL_POWER_H
#define GDM_REAL_POWER_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

/* ln(2) as a sum. The first part has 33 digits, so an exponent times it is exact. */
#define LN2_HIGH 0x1.62e42feep-1
#define LN2_LOW 0x1.a39ef35793c76p-33

/* An unevaluated sum; `low` is about 2^-53 times `high` or less. */
struct two {
    double high, low;
};

/* a + b exactly, for a that is 0 or has at least the exponent of b. */
static inline struct two sum_of(double a, double b) {
    const double sum = a + b;
    return (struct two){sum, b - (sum - a)};
}

/* The upper half of the digits (G. Veltkamp, 1968). */
static inline double upper_half(double x) {
    const double c = 134217729.0 * x;
    return c - (c - x);
}

/* a * b exactly (T. Dekker, "A floating-point technique for extending the available precision", 1971). */
static inline struct two product_of(double a, double b) {
    const double a1 = upper_half(a), a2 = a - a1, b1 = upper_half(b), b2 = b - b1, product = a * b;
    return (struct two){product, ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2};
}

static inline double two_to(int exponent) {
    const uint64_t bits = (uint64_t)(exponent + 1023) << 52;
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* log(x) for a finite x > 0: x = m 2^e with m near 1, and log(m) = 2 (s + s^3 / 3 + s^5 / 5 + ...) with
 * s = (m - 1) / (m + 1). */
static inline struct two log_of(double x) {
    int e = 0;
    if (x < DBL_MIN) {
        x = x * 0x1p54;
        e = -54;
    }
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    e += (int)(bits >> 52) - 1022;
    bits = (bits & 0xfffffffffffff) | (uint64_t)1022 << 52;
    double m;
    memcpy(&m, &bits, sizeof m);
    if (m < 0x1.6a09e667f3bcdp-1) {
        m = m * 2.0;
        e--;
    }
    const double n = m - 1.0;
    const struct two d = sum_of(1.0, m);
    const double s = n / d.high;
    const struct two back = product_of(s, d.high);
    const double s_low = ((n - back.high) - back.low - s * d.low) / d.high;
    const double z = s * s;
    double series = 1.0 / 23.0;
    for (int k = 21; k >= 3; k -= 2) series = series * z + 1.0 / k;
    const struct two log_m = sum_of(2.0 * s, 2.0 * (s_low + s * (z * series)));
    const struct two sum = sum_of(e * LN2_HIGH, log_m.high);
    return sum_of(sum.high, sum.low + (e * LN2_LOW + log_m.low));
}

/* e^(y.high + y.low): 2^k e^r with a small r. */
static inline double exp_of(struct two y) {
    if (y.high > 710.0) return INFINITY;
    if (y.high < -746.0) return 0.0;
    const int k = (int)(y.high * 0x1.71547652b82fep+0 + (y.high < 0 ? -0.5 : 0.5));
    const double r = (y.high - k * LN2_HIGH) + (y.low - k * LN2_LOW);
    static const double inverse_factorials[] = {
        1.0,
        1.0,
        1.0 / 2,
        1.0 / 6,
        1.0 / 24,
        1.0 / 120,
        1.0 / 720,
        1.0 / 5040,
        1.0 / 40320,
        1.0 / 362880,
        1.0 / 3628800,
        1.0 / 39916800,
        1.0 / 479001600,
        1.0 / 6227020800,
        1.0 / 87178291200,
    };
    double sum = inverse_factorials[14];
    for (int i = 13; i >= 0; i--) sum = inverse_factorials[i] + sum * r;
    return sum * two_to(k / 2) * two_to(k - k / 2);
}

/* base^exponent for base > 0, which may be infinite, and a finite exponent >= 0. */
static inline double real_power(double base, double exponent) {
    if (exponent == 0 || base == 1) return 1.0;
    if (base > DBL_MAX) return base;
    const struct two log = log_of(base);
    const double high = exponent * log.high;
    if (!(high > -800.0 && high < 800.0)) return high > 0 ? INFINITY : 0.0; /* there, halves might overflow */
    const struct two y = product_of(exponent, log.high);
    return exp_of(sum_of(y.high, y.low + exponent * log.low));
}

#endif
