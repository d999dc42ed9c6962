// F(4, 3) along rows, F(2, 3) over planes: the way there, and back with bias and activation.
#pragma once

#include <algorithm>
#include <cstdint>

#include "vectors.h"

static inline void transform(const vec d[6], vec y[6]) {
    vec p = d[4] - 4.f * d[2], q = d[3] - 4.f * d[1], r = d[4] - d[2], s = 2.f * (d[3] - d[1]);
    y[0] = 4.f * d[0] - 5.f * d[2] + d[4], y[1] = p + q, y[2] = p - q, y[3] = r + s, y[4] = r - s;
    y[5] = 4.f * d[1] - 5.f * d[3] + d[5];
}

static inline void transform_back(const vec m[6], vec y[4]) {
    vec a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], e = m[3] - m[4];
    y[0] = m[0] + a + c, y[1] = b + 2.f * e, y[2] = a + 4.f * c, y[3] = b + 8.f * e + m[5];
}

// Rows that lie evenly apart, as those within the volume do; it saves the registers that many addresses would take.
struct EvenRows {
    const float* planes[4];
    int64_t step;
    const float* operator()(int z, int k) const { return planes[z] + k * step; }
};
struct AnyRows {
    const float* rows[24];
    const float* operator()(int z, int k) const { return rows[z * 6 + k]; }
};

// Six rows of one plane (number z of `in`), `width` long, to the six taps of F(4, 3). What lies `ahead` is wanted soon.
template <class Rows>
static void transform_rows(const Rows& in, int z, int64_t ahead, int width, float* out, int64_t tap) {
    for (int x = 0; x < width; x += LANES) {
        vec d[6], y[6];
#pragma GCC unroll 6
        for (int k = 0; k < 6; ++k) d[k] = load(in(z, k) + x), __builtin_prefetch(in(z, k) + x + ahead);
        transform(d, y);
#pragma GCC unroll 6
        for (int t = 0; t < TAPS; ++t) store(out + t * tap + x, y[t]);
    }
}

// Six rows of each of four planes to the 4 x 6 taps of F(2, 3) x F(4, 3).
template <class Rows>
__attribute__((noinline)) static void transform_planes(const Rows& in, int64_t ahead, int width, float* out, int64_t tap) {
    for (int x = 0; x < width; x += LANES) {
        vec first[6], second[6], y[6];
        float* to = out + x;
        auto put = [&](const vec* d, int plane_tap) __attribute__((always_inline)) {
            transform(d, y);
#pragma GCC unroll 6
            for (int t = 0; t < TAPS; ++t) store(to + (plane_tap * TAPS + t) * tap, y[t]);
        };
#pragma GCC unroll 6
        for (int k = 0; k < 6; ++k) {
            first[k] = load(in(0, k) + x) - load(in(2, k) + x);
            __builtin_prefetch(in(0, k) + x + ahead), __builtin_prefetch(in(2, k) + x + ahead);
        }
        put(first, 0);
#pragma GCC unroll 6
        for (int k = 0; k < 6; ++k) {
            vec one = load(in(1, k) + x), two = load(in(2, k) + x);
            first[k] = one + two, second[k] = two - one;
            __builtin_prefetch(in(1, k) + x + ahead);
        }
        put(first, 1);
        put(second, 2);
#pragma GCC unroll 6
        for (int k = 0; k < 6; ++k) {
            first[k] = load(in(1, k) + x) - load(in(3, k) + x);
            __builtin_prefetch(in(3, k) + x + ahead);
        }
        put(first, 3);
    }
}

// The products of one output channel back to up to four rows of one plane, or of two that lie d apart (rows 4 to 7).
template <int KIND, bool PAIR>
static void combine(const float* products, int64_t tap, int count, float bias, float* const to[8], int present) {
    for (int x = 0; x < count; x += LANES) {
        const float* m = products + x;
        vec one[6], two[6], y[8];
#pragma GCC unroll 6
        for (int t = 0; t < TAPS; ++t) {
            one[t] = load(m + t * tap);
            if constexpr (PAIR) {
                vec a = load(m + (TAPS + t) * tap), b = load(m + (2 * TAPS + t) * tap);
                one[t] += a + b;
                two[t] = a - b - load(m + (3 * TAPS + t) * tap);
            }
        }
        transform_back(one, y);
        if constexpr (PAIR) transform_back(two, y + 4);
        const int left = count - x;
#pragma GCC unroll 2
        for (int z = 0; z < (PAIR ? 8 : 4); z += 4) {
#pragma GCC unroll 4
            for (int k = 0; k < 4; ++k)
                if (k < 2 || k < present) store_part(to[z + k] + x, activate(y[z + k] + bias, KIND), left);
        }
    }
}

typedef void (*Combine)(const float*, int64_t, int, float, float* const*, int);
template <bool PAIR>
static Combine combine_for(int activation) {
    switch (activation) {
        case RELU: return combine<RELU, PAIR>;
        case ELU: return combine<ELU, PAIR>;
        case GELU: return combine<GELU, PAIR>;
        default: return combine<NONE, PAIR>;
    }
}
