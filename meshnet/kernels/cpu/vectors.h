// Vectors of float as wide as the CPU's, and the activations on them.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(__AVX__)
constexpr int LANES = 8, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int LANES = 4, REGISTERS = 32;
#else
constexpr int LANES = 4, REGISTERS = 16;
#endif
constexpr int TAPS = 6, PAIR_TAPS = 4;               // products of F(4, 3) and of F(2, 3)

typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

static inline vec load(const float* p) { return *reinterpret_cast<const vec*>(p); }
static inline void store(float* p, vec v) { *reinterpret_cast<vec*>(p) = v; }
static inline void store_part(float* p, vec v, int count) {
    if (count >= LANES) store(p, v);
    else std::memcpy(p, &v, count * sizeof(float));
}
static inline vec load_part(const float* p, int count) {
    if (count >= LANES) return load(p);
    vec v = {};
    if (count > 0) std::memcpy(&v, p, count * sizeof(float));
    return v;
}
static inline vec spread(float x) { return vec{} + x; }
static inline vec choose(ivec mask, vec yes, vec no) { return mask ? yes : no; }
static inline int64_t round_up(int64_t n, int to) { return (n + to - 1) / to * to; }

// ---------------------------------------------------------------- activations

enum Activation { NONE = 0, RELU = 1, ELU = 2, GELU = 3 };

static inline vec exponential(vec x) {  // for x <= 0, relative error below 2e-7 (Cephes' polynomial)
    x = choose(x < spread(-87.f), spread(-87.f), x);
    ivec n = __builtin_convertvector(x * 1.44269504f - 0.5f, ivec);
    vec k = __builtin_convertvector(n, vec);
    vec r = x - k * 0.693359375f + k * 2.12194440e-4f;
    vec p = spread(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        p = p * r + c;
    p = p * r * r + r + 1.f;
    ivec bits = (n + 127) << 23;
    return p * reinterpret_cast<vec&>(bits);
}

static inline vec error_function(vec x) {  // Abramowitz & Stegun 7.1.26, absolute error below 1.5e-7
    vec a = choose(x < spread(0.f), -x, x);
    vec t = 1.f / (1.f + 0.3275911f * a);
    vec p = spread(1.061405429f);
    for (float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) p = p * t + c;
    vec y = 1.f - p * t * exponential(-a * a);
    return choose(x < spread(0.f), -y, y);
}

static inline vec activate(vec x, int kind) {
    switch (kind) {
        case RELU: return choose(spread(0.f) > x, spread(0.f), x);
        case ELU: return choose(x > spread(0.f), x, exponential(choose(x > spread(0.f), spread(0.f), x)) - 1.f);
        case GELU: return 0.5f * x * (1.f + error_function(x * 0.70710678f));
        default: return x;
    }
}
