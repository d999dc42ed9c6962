// What norm and activation of a training step share: slopes, sums, pieces of channels.
#pragma once

#include <algorithm>
#include <cstdint>

#include "threads.h"
#include "vectors.h"

static inline vec slope(vec x, int kind) {
    switch (kind) {
        case RELU: return choose(x > spread(0.f), spread(1.f), spread(0.f));
        case ELU: return choose(x > spread(0.f), spread(1.f), exponential(choose(x > spread(0.f), spread(0.f), x)));
        case GELU: return 0.5f * (1.f + error_function(x * 0.70710678f)) + 0.39894228f * x * exponential(-0.5f * x * x);
        default: return spread(1.f);
    }
}

static inline double total(vec v) {
    double sum = 0;
    for (int lane = 0; lane < LANES; ++lane) sum += v[lane];
    return sum;
}

constexpr int64_t PIECE = 1 << 14;  // values summed in float before they are added up in double

// work(channel, first value, count, piece) for every piece of x (batch, channels, voxels).
template <class Work>
static void in_pieces(int batch, int channels, int64_t voxels, int threads, Work work) {
    const int64_t pieces = (voxels + PIECE - 1) / PIECE, items = pieces * batch * channels;
    std::atomic<int64_t> next{0};
    in_threads(threads, [&](int, Barrier&) {
        for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) {
            const int64_t row = item / pieces, piece = item % pieces;
            work(int(row % channels), row * voxels + piece * PIECE, int(std::min(PIECE, voxels - piece * PIECE)),
                 row / channels * pieces + piece);
        }
    });
}
