// The inner loop: sums of a block of output channels held in registers, and columns in pairs (F(2, 3) along z).
#pragma once

#include <algorithm>
#include <cstdint>

#include "vectors.h"

constexpr int MAX_BLOCK = REGISTERS == 32 ? 13 : 6;  // output channels whose sums fit the registers, two vectors each
constexpr int WIDE_BLOCK = REGISTERS == 32 ? 6 : 3;  // up to this many channels, four vectors each

// Vectors of each of a block's sums that are held at once.
constexpr int vectors_for(int block) { return block <= WIDE_BLOCK ? 4 : block * 3 < REGISTERS - 4 ? 3 : 2; }

// sum[o][v] += weight[o] * row[v]
template <int OUT, int VECTORS>
static inline __attribute__((always_inline)) void accumulate(vec (&sum)[OUT][VECTORS], const float* row, const float* weight) {
    vec x[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) x[v] = load(row + v * LANES);
#pragma GCC unroll 16
    for (int o = 0; o < OUT; ++o) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) sum[o][v] += weight[o] * x[v];
    }
}

// out[o][v] = sum over rows k and the three columns c of weight[k][c][o] * rows[k][(c - 1) * dilation + v]
template <int OUT, int VECTORS>
static inline void inner(const float* const* rows, int count, int64_t offset, int dilation, const float* weight,
                         float* out, int64_t out_stride, const float* soon = nullptr, int each = 0) {
    vec sum[OUT][VECTORS] = {};
    for (int k = 0; k < count; ++k) {
        for (int n = 0; n < each; ++n, soon += 16) __builtin_prefetch(soon, 0, 2);
        const float* row = rows[k] + offset - dilation;
        for (int c = 0; c < 3; ++c, row += dilation, weight += OUT) accumulate(sum, row, weight);
    }
#pragma GCC unroll 16
    for (int o = 0; o < OUT; ++o)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) store(out + o * out_stride + v * LANES, sum[o][v]);
}

// What the next piece of work reads, asked for while this one multiplies, when the memory rests: a few lines at a time,
// since asking for more than the core can keep track of makes it wait.
struct Ahead {
    const float* planes[4];  // where the rows that are wanted begin, in each plane
    int count, rows, channels, lines;  // planes, rows in each, channels, cache lines a row
    int64_t row_step, channel_step;
    int row = 0, total = 0;   // what is next, how many rows there are
    int steps = 1, step = 0;  // of multiplying, in which they are to be asked for

    const float* next() {  // where the next row begins; null where none is due
        if (row >= total || int64_t(++step) * total / steps <= row) return nullptr;
        const int r = row % rows, z = row / rows % count, c = row / rows / count;
        ++row;
        return planes[z] + r * row_step + c * channel_step;
    }
};

template <int OUT>
static void inner_row(const float* const* rows, int count, int width, int64_t offset, int dilation,
                      const float* weight, float* out, int64_t out_stride, Ahead* ahead) {
    constexpr int VECTORS = vectors_for(OUT);
    int x = 0;
    for (; x + VECTORS * LANES <= width; x += VECTORS * LANES) {
        const float* soon = ahead ? ahead->next() : nullptr;
        inner<OUT, VECTORS>(rows, count, offset + x, dilation, weight, out + x, out_stride, soon, soon ? (ahead->lines + count - 1) / count : 0);
    }
    for (; x + 2 * LANES <= width; x += 2 * LANES)
        inner<OUT, 2>(rows, count, offset + x, dilation, weight, out + x, out_stride);
    for (; x < width; x += LANES) inner<OUT, 1>(rows, count, offset + x, dilation, weight, out + x, out_stride);
}

typedef void (*InnerRow)(const float* const*, int, int, int64_t, int, const float*, float*, int64_t, Ahead*);
template <int OUT>
static InnerRow inner_for(int block) {
    if constexpr (OUT == 0) return nullptr;
    else return block == OUT ? inner_row<OUT> : inner_for<OUT - 1>(block);
}

// ---------------------------------------------------------------- columns in pairs

// Columns x and x + d of every 2d columns, taken apart into two vectors ("even" and "odd") and put together again.
// Pair h of a row is the columns at(h) and at(h) + d.
struct Pairs {
    int d;
    ivec even, odd, low, high;

    static int unit(int d) { return std::max(2 * d, 2 * LANES); }  // columns are computed in multiples of this
    static bool possible(int d) {
        if (4 * LANES % unit(d)) return false;
        if (d % LANES == 0) return true;
#if defined(__AVX512F__)
        return LANES % d == 0;
#else
        return false;
#endif
    }
    explicit Pairs(int d) : d(d) {
        for (int k = 0; k < LANES && d < LANES; ++k) {
            even[k] = k / d * 2 * d + k % d, odd[k] = even[k] + d;
            for (int half = 0; half < 2; ++half) {
                const int x = half * LANES + k, from = x / (2 * d) * d + x % d + (x % (2 * d) < d ? 0 : LANES);
                (half ? high : low)[k] = from;
            }
        }
    }
    int at(int h) const { return d < LANES ? 2 * h : h / d * 2 * d + h % d; }  // h: a multiple of LANES
    static vec pick(vec a, vec b, ivec which) {
#if defined(__AVX512F__)
        return reinterpret_cast<vec>(_mm512_permutex2var_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512i>(which),
                                                            reinterpret_cast<__m512>(b)));
#else
        return which[0] < LANES ? a : b;  // never asked for: see possible()
#endif
    }
    void split(const float* row, vec& a, vec& b) const {
        if (d < LANES) {
            const vec one = load(row), two = load(row + LANES);
            a = pick(one, two, even), b = pick(one, two, odd);
        } else a = load(row), b = load(row + d);
    }
    void join(float* row, vec a, vec b) const {
        if (d < LANES) store(row, pick(a, b, low)), store(row + LANES, pick(a, b, high));
        else store(row, a), store(row + d, b);
    }
};

// Rows `wide` + 2d long to the four taps of F(2, 3) along them, [tap][row][wide / 2].
__attribute__((noinline)) static void transform_columns(const float* const* rows, int count, int64_t offset, int wide, const Pairs& pairs, float* out) {
    const int half = wide / 2;
    const int64_t tap = int64_t(count) * half;
    for (int k = 0; k < count; ++k)
        for (int h = 0; h < half; h += LANES) {
            const float* row = rows[k] + offset + pairs.at(h);
            vec a, b, c, d;
            pairs.split(row, a, b);
            pairs.split(row + 2 * pairs.d, c, d);
            float* to = out + int64_t(k) * half + h;
            store(to, a - c), store(to + tap, b + c), store(to + 2 * tap, c - b), store(to + 3 * tap, b - d);
        }
}

// out[o][x] from the taps of `count` rows and weight[tap][row][o]: products of each tap, then the way back.
template <int OUT, int VECTORS>
static inline void inner_pairs(const float* in, int count, int half, int from, const float* weights, int64_t tap_weights,
                               const Pairs& pairs, float* out, int64_t out_stride) {
    vec products[PAIR_TAPS][OUT][VECTORS];
    for (int t = 0; t < PAIR_TAPS; ++t) {
        const float *row = in + int64_t(t) * count * half + from, *weight = weights + t * tap_weights;
        vec sum[OUT][VECTORS] = {};
        for (int k = 0; k < count; ++k, row += half, weight += OUT) accumulate(sum, row, weight);
#pragma GCC unroll 16
        for (int o = 0; o < OUT; ++o)
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) products[t][o][v] = sum[o][v];
    }
    for (int v = 0; v < VECTORS; ++v) {
        float* to = out + pairs.at(from + v * LANES);
        for (int o = 0; o < OUT; ++o, to += out_stride) {
            const vec a = products[1][o][v], b = products[2][o][v];
            pairs.join(to, products[0][o][v] + a + b, a - b - products[3][o][v]);
        }
    }
}

template <int OUT>
static void inner_pairs_row(const float* in, int count, int wide, const float* weights, int64_t tap_weights,
                            const Pairs& pairs, float* out, int64_t out_stride) {
    constexpr int VECTORS = vectors_for(OUT);
    const int half = wide / 2;
    int h = 0;
    for (; h + VECTORS * LANES <= half; h += VECTORS * LANES)
        inner_pairs<OUT, VECTORS>(in, count, half, h, weights, tap_weights, pairs, out, out_stride);
    for (; h < half; h += LANES) inner_pairs<OUT, 1>(in, count, half, h, weights, tap_weights, pairs, out, out_stride);
}

typedef void (*InnerPairs)(const float*, int, int, const float*, int64_t, const Pairs&, float*, int64_t);
template <int OUT>
static InnerPairs inner_pairs_for(int block) {
    if constexpr (OUT == 0) return nullptr;
    else return block == OUT ? inner_pairs_row<OUT> : inner_pairs_for<OUT - 1>(block);
}
