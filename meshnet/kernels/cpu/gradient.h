// The gradient of a convolution's weights, in the same transformed rows as F(4, 3).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "convolution.h"
#include "planes.h"
#include "threads.h"
#include "winograd.h"

// sums[o][i][c] += over groups and columns: g[o] * x[i] shifted by c dilations. Strides in floats.
template <int OUT, int IN>
static void inner_products(const float* g, int64_t g_stride, int64_t g_group, const float* x, int64_t x_stride,
                           int64_t x_group, int groups, int width, int dilation, float* sums, int64_t out_stride) {
    vec sum[OUT][IN * 3];
    for (int o = 0; o < OUT; ++o)
        for (int n = 0; n < IN * 3; ++n) sum[o][n] = load(sums + o * out_stride + n * LANES);
    for (int k = 0; k < groups; ++k)
        for (int at = 0; at < width; at += LANES) {
            const float *gk = g + k * g_group + at, *xk = x + k * x_group + at;
            vec values[IN * 3];
#pragma GCC unroll 2
            for (int i = 0; i < IN; ++i)
#pragma GCC unroll 3
                for (int c = 0; c < 3; ++c) values[i * 3 + c] = load(xk + i * x_stride + c * dilation);
#pragma GCC unroll 4
            for (int o = 0; o < OUT; ++o) {
                vec y = load(gk + o * g_stride);
#pragma GCC unroll 6
                for (int n = 0; n < IN * 3; ++n) sum[o][n] += y * values[n];
            }
        }
    for (int o = 0; o < OUT; ++o)
        for (int n = 0; n < IN * 3; ++n) store(sums + o * out_stride + n * LANES, sum[o][n]);
}

struct WeightGradient {
    static constexpr int MAX_OUT = REGISTERS == 32 ? 4 : 2;
    int in, out, dilation, shape[3];
    const float *x, *g;
    int groups, at_once, wide, pad;  // groups of four rows; how many in one go; columns rounded up; room left and right
    int64_t x_row, g_row;            // floats of one transformed row
    Buffer tx, tg, sums;             // [tap][plane][in][group][x_row], [tap][out][group][g_row],
                                     // [tap][plane][out][in][column][lane]

    const float* row(const float* from, int channel, int p, int r) const {
        return from + ((int64_t(channel) * shape[0] + p) * shape[1] + r) * shape[2];
    }
    int first_row(int group) const { return group / dilation * 4 * dilation + group % dilation; }
    int64_t sums_floats() const { return int64_t(TAPS) * 3 * out * in * 3 * LANES; }

    void prepare() {
        const int d = dilation, h = shape[1];
        groups = h / (4 * d) * d + std::min(d, h % (4 * d));
        wide = round_up(shape[2], LANES);
        pad = dilation;
        x_row = round_up(wide + 2 * pad, LANES), g_row = wide;
        at_once = std::max(1, std::min(groups, 1024 / wide));
        tx.allocate(size_t(TAPS) * 3 * in * at_once * x_row);
        tg.allocate(size_t(TAPS) * out * at_once * g_row);
        sums.allocate(sums_floats());
    }
    float* tx_at(int t, int z, int i, int k) const {
        return tx.data + (((int64_t(t) * 3 + z) * in + i) * at_once + k) * x_row;
    }
    float* tg_at(int t, int o, int k) const { return tg.data + ((int64_t(t) * out + o) * at_once + k) * g_row; }

    void transform_input(int q, int i, int group, int k) {
        const int z = slot(q), first = first_row(group) - dilation;
        const float* rows[6];
        for (int j = 0; j < 6; ++j) {
            int r = first + j * dilation;
            rows[j] = r >= 0 && r < shape[1] ? row(x, i, q, r) : nullptr;
        }
        float* to = tx_at(0, z, i, k) + pad;
        const int64_t tap = tx_at(1, z, i, k) - tx_at(0, z, i, k);
        for (int c = 0; c < shape[2]; c += LANES) {
            const int count = shape[2] - c;
            vec d[6];
            for (int j = 0; j < 6; ++j) d[j] = rows[j] ? load_part(rows[j] + c, count) : vec{};
            vec y[6];
            transform(d, y);
            for (int t = 0; t < TAPS; ++t) store_part(to + t * tap + c, y[t], count);
        }
    }
    int slot(int q) const { return q / dilation % 3; }  // where plane q of those that lie d apart is kept
    void transform_output(int p, int o, int group, int k) {
        const int first = first_row(group);
        float* to = tg_at(0, o, k);
        const int64_t tap = tg_at(1, o, k) - tg_at(0, o, k);
        for (int c = 0; c < wide; c += LANES) {
            vec d[4];
            for (int j = 0; j < 4; ++j) {
                int r = first + j * dilation;
                d[j] = r < shape[1] ? load_part(row(g, o, p, r) + c, shape[2] - c) : vec{};
            }
            vec a = d[0] + d[2], b = d[1] + d[3], e = d[0] + 4.f * d[2], f = 2.f * d[1] + 8.f * d[3];
            vec y[6] = {d[0], a + b, a - b, e + f, e - f, d[3]};
            for (int t = 0; t < TAPS; ++t) store(to + t * tap + c, y[t]);
        }
    }
    template <int OUT>
    void multiply(int t, int z, int at, int i, int o, int count) {
        const float* from = tx_at(t, at, i, 0);
        float* to = sums.data + (((int64_t(t) * 3 + z) * out + o) * in + i) * 3 * LANES;
        const int64_t x_stride = at_once * x_row, g_stride = at_once * g_row, step = int64_t(in) * 3 * LANES;
        if (i + 1 < in)
            inner_products<OUT, 2>(tg_at(t, o, 0), g_stride, g_row, from, x_stride, x_row, count, wide, dilation, to, step);
        else
            inner_products<OUT, 1>(tg_at(t, o, 0), g_stride, g_row, from, x_stride, x_row, count, wide, dilation, to, step);
    }
    void multiply_all(int t, int z, int at, int i, int count) {  // plane z of three, which is kept at `at`
        for (int o = 0; o < out;) {
            const int left = std::min(MAX_OUT, out - o);
            if (left == 1) multiply<1>(t, z, at, i, o, count);
            else if (left == 2) multiply<2>(t, z, at, i, o, count);
            else if (left == 3) multiply<3>(t, z, at, i, o, count);
            else multiply<4>(t, z, at, i, o, count);
            o += left;
        }
    }
    void finish(float* result) const {  // (out, in, 3, 3, 3)
        const int64_t tap = sums_floats() / TAPS;
        for (int o = 0; o < out; ++o)
            for (int i = 0; i < in; ++i)
                for (int z = 0; z < 3; ++z)
                    for (int c = 0; c < 3; ++c) {
                        double w[3] = {0, 0, 0};
                        for (int t = 0; t < TAPS; ++t) {
                            const float* lanes = sums.data + t * tap + (((int64_t(z) * out + o) * in + i) * 3 + c) * LANES;
                            double sum = 0;
                            for (int lane = 0; lane < LANES; ++lane) sum += lanes[lane];
                            for (int r = 0; r < 3; ++r) w[r] += G[t][r] * sum;
                        }
                        for (int r = 0; r < 3; ++r) result[(((int64_t(o) * in + i) * 3 + z) * 3 + r) * 3 + c] = float(w[r]);
                    }
    }
    // Planes that lie d apart follow each other, so that each is transformed once for the three that it meets. A thread
    // begins with the channels that it transformed itself, then takes what others have left.
    void run(int threads) {
        const int pairs = (in + 1) / 2, channels = std::max(in, out);
        std::vector<Counter> counters(2 * threads);
        in_threads(threads, [&](int thread, Barrier& barrier) {
            auto share = [&](int which, int64_t items, auto work) {
                Counter* taken = counters.data() + which * threads;
                for (int k = 0; k < threads; ++k) {
                    const int one = (thread + k) % threads;
                    const int64_t begin = items * one / threads, end = items * (one + 1) / threads;
                    for (int64_t item; (item = begin + taken[one].next()) < end;) work(int(item));
                }
                barrier.wait();  // the counters are used again after the next one
                for (int one = thread; one < threads; one += barrier.total) taken[one].reset();
            };
            for (int start = 0; start < groups; start += at_once)
                for (int first = 0; first < std::min(dilation, shape[0]); ++first)
                    for (int p = first; p < shape[0]; p += dilation) {
                        const int count = std::min(at_once, groups - start);
                        const int first_z = p == first ? 1 : 0, planes = (p + dilation < shape[0] ? 3 : 2) - first_z;
                        share(0, channels, [&](int item) {
                            for (int q = p == first ? p : p + dilation; q <= p + dilation && q < shape[0]; q += dilation)
                                for (int i = in * item / channels; i < in * (item + 1) / channels; ++i)
                                    for (int k = 0; k < count; ++k) transform_input(q, i, start + k, k);
                            for (int o = out * item / channels; o < out * (item + 1) / channels; ++o)
                                for (int k = 0; k < count; ++k) transform_output(p, o, start + k, k);
                        });
                        share(1, int64_t(pairs) * TAPS * planes, [&](int item) {
                            const int z = first_z + item % planes;
                            multiply_all(item / planes % TAPS, z, slot(p + (z - 1) * dilation), item / (planes * TAPS) * 2, count);
                        });
                    }
        });
    }
};
