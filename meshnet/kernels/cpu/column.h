// A column of 3x3x3 layers streamed plane by plane, and the 1x1x1 layer to the classes on top.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#include "classes.h"
#include "plan.h"
#include "threads.h"
#include "winograd.h"

constexpr int AHEAD_BYTES = 256 * 1024;  // of the level-two cache, for what the next piece of work reads

struct Piece {  // of a step's work
    int first, present;     // the first of its rows, which lie d apart, and how many there are (up to four)
    int from, count, wide;  // columns, and their number rounded up to whole vectors
    float* to[8];           // where channel 0 of each row goes; rows 4 to 7 are the second plane's
    int64_t to_stride;      // from channel to channel
};

struct Scratch {
    Buffer transformed, columns, products, features, logits;
    std::vector<const float*> rows;
};

// A plan carried out: each step cut into pieces, which threads take.
struct Column : Plan {
    Buffer pool;  // the slots that layers share
    const float* volume;
    const float *head_weight = nullptr, *head_bias = nullptr;
    int output = FEATURES;
    void* out = nullptr;
    int out_shape[3], out_at[3];  // the array to write into, and where the box's first voxel lies in it
    std::vector<float> zeros;

    // Whether only the middle rows and columns of a step are computed: those beyond a gap see no content, so they are the
    // same in all middle planes that do not see the volume's end, and lie already where such a plane was kept before.
    bool middle_only(const Step& step) const {
        if (step.layer < 0 || step.layer + 1 == int(layers.size()) || pooled) return false;
        int seen = 0;
        for (int l = 0; l <= step.layer; ++l) seen += layers[l]->dilation;
        const Range middle = boxes[step.layer + 1].middle(0);
        const int last = step.plane + (step.pair ? layers[step.layer]->dilation : 0);
        return step.plane - planes[step.layer + 1].slots >= std::max(seen, middle.a) && last < std::min(shape[0] - seen, middle.b);
    }
    // All pieces of a layer's planes, or of their middle alone, in `shares` of rows that lie together. Within a share those
    // that have two rows of their input in common come one after the other.
    std::vector<std::vector<Piece>> cut(int layer, bool middle, int shares) const {
        const Box& box = boxes[layer + 1];
        const int d = layers[layer]->dilation;
        std::vector<std::pair<std::array<int, 4>, Piece>> all;  // with what they are sorted by
        for (const Range& rows : box.computed(1, middle))
            for (int first = rows.a; first < rows.b; first += first + 1 < rows.b && (first + 1 - rows.a) % d ? 1 : 3 * d + 1)
                for (const Range& columns : box.computed(2, middle))
                    for (int from = columns.a; from < columns.b; from += chunk) {
                        Piece piece{};
                        piece.first = first - box.a[1], piece.present = std::min(4, (rows.b - first + d - 1) / d);
                        piece.from = from - box.a[2], piece.count = std::min(chunk, columns.b - from);
                        piece.wide = round_up(piece.count, LANES);
                        all.push_back({{rows.a, (first - rows.a) % d, from, first}, piece});
                    }
        std::vector<std::vector<Piece>> cut(shares);
        for (int share = 0; share < shares; ++share) {
            const auto begin = all.begin() + all.size() * share / shares, end = all.begin() + all.size() * (share + 1) / shares;
            std::sort(begin, end, [](const auto& a, const auto& b) { return a.first < b.first; });
            for (auto one = begin; one != end; ++one) cut[share].push_back(one->second);
        }
        return cut;
    }

    void read_plane(int p, int item) {  // one channel of the input
        Planes& to = planes[0];
        const Box& box = boxes[0];
        float* plane = to.plane(p) + item * to.channel_stride;
        const float* from = volume + (int64_t(item) * shape[0] + p) * shape[1] * shape[2];
        for (int r = box.a[1]; r < box.b[1]; ++r)
            std::memcpy(plane + int64_t(r - to.origin[0]) * to.stride + box.a[2] - to.origin[1],
                        from + int64_t(r) * shape[2] + box.a[2], (box.b[2] - box.a[2]) * sizeof(float));
    }

    // Where row `row` (of the layer's box), channel 0, column `from` of layer `l` in plane `p` is to be written.
    float* target(int l, int p, int row, int from, int64_t& channel_stride) {
        const Box& box = boxes[l + 1];
        if (l + 1 < int(layers.size())) {
            Planes& to = planes[l + 1];
            channel_stride = to.channel_stride;
            return to.plane(p) + int64_t(box.a[1] + row - to.origin[0]) * to.stride + box.a[2] + from - to.origin[1];
        }
        channel_stride = int64_t(out_shape[0]) * out_shape[1] * out_shape[2];
        return static_cast<float*>(out) + position(p, row, from);
    }
    int64_t position(int p, int row, int from) const {
        return (int64_t(p - boxes.back().a[0] + out_at[0]) * out_shape[1] + row + out_at[1]) * out_shape[2] +
               out_at[2] + from;
    }

    // One piece of a plane, or of the planes p and p + d: four rows that lie d apart, `chunk` columns.
    void compute(const Step& step, Piece piece, const Piece* next, Scratch& s) {
        const int l = step.layer;
        const Convolution& layer = *layers[l];
        const int d = layer.dilation;
        const bool fused = l + 1 == int(layers.size()) && output != FEATURES;
        const int planes_out = step.pair ? 2 : 1;
        for (int z = 0; z < planes_out; ++z)
            for (int k = 0; k < piece.present; ++k)
                piece.to[4 * z + k] = fused ? s.features.data + int64_t(4 * z + k) * layer.out * chunk
                                            : target(l, step.plane + z * d, piece.first + k * d, piece.from, piece.to_stride);
        if (fused) piece.to_stride = chunk;
        if (piece.present >= (step.pair ? 2 : 3) && layer.in >= 3) by_transform(l, step, piece, next, s);
        else
            for (int z = 0; z < planes_out; ++z) directly(l, step.plane + z * d, piece, piece.to + 4 * z, s);
        for (int z = 0; fused && z < planes_out; ++z)
            for (int k = 0; k < piece.present; ++k)
                classify(piece.to[4 * z + k], layer.out, step.plane + z * d, piece.first + k * d, piece.from, piece.count,
                         s.logits.data);
        for (int z = 0; l + 1 < int(layers.size()) && !middle_only(step) && z < planes_out; ++z)
            for (int k = 0; k < piece.present; ++k) {
                const int row = boxes[l + 1].a[1] + piece.first + k * d, from = boxes[l + 1].a[2] + piece.from;
                planes[l + 1].fill_gaps(step.plane + z * d, row, from, from + piece.count);
            }
    }

    // Planes outside the volume are zero and left out: which of the three that plane p looks at are inside.
    std::pair<int, int> inside(const Planes& in, int p, int d) const {
        int first = 0, last = 3;
        while (first < 3 && !in.plane(p + (first - 1) * d)) ++first;
        while (last > first && !in.plane(p + (last - 2) * d)) --last;
        return {first, last};
    }

    // What `next`, a piece of the same step as `piece`, reads and `piece` does not.
    void ask_ahead(int l, const Step& step, const Piece& piece, const Piece& next, int reach, Ahead& ahead) const {
        const Planes& in = planes[l];
        const int d = layers[l]->dilation, shared = next.first == piece.first + 4 * d && next.from == piece.from ? 2 : 0;
        ahead.rows = std::min(6, (in.rows - next.first + d - 1) / d) - shared;
        if (ahead.rows <= 0) return;
        for (int z = 0; z < (step.pair ? 4 : 3); ++z)
            if (const float* plane = in.plane(step.plane + (z - 1) * d))
                ahead.planes[ahead.count++] = plane + int64_t(in.first[0] + next.first + shared * d) * in.stride + in.first[1] + next.from - d;
        ahead.channels = layers[l]->in, ahead.lines = (reach + 15) / 16;
        ahead.row_step = int64_t(d) * in.stride, ahead.channel_step = in.channel_stride;
        ahead.total = ahead.rows * ahead.count * ahead.channels;
        if (int64_t(ahead.total) * ahead.lines * 64 > AHEAD_BYTES) ahead.total = 0;
    }

    void by_transform(int l, const Step& step, const Piece& piece, const Piece* next, Scratch& s) {
        const Convolution& layer = *layers[l];
        const Planes& in = planes[l];
        const Pairs pairs(layer.columns ? layer.dilation : LANES);
        const int d = layer.dilation, wide = layer.columns ? round_up(piece.count, Pairs::unit(d)) : piece.wide;
        const int reach = round_up(wide + 2 * d, LANES);
        const int64_t weights = int64_t(layer.in) * layer.across() * layer.block, products = int64_t(layer.blocks) * layer.block * chunk;
        const int taps = step.pair ? TAPS * PAIR_TAPS : TAPS, planes_out = step.pair ? 2 : 1;
        const int64_t offset = int64_t(in.first[0] + piece.first) * in.stride + in.first[1] + piece.from - d;
        int first = 0, last = 4;  // of the planes that lie d apart
        if (!step.pair) std::tie(first, last) = inside(in, step.plane, d);
        bool even = piece.first + 5 * d < in.rows;
        const float* planes_at[4] = {};
        for (int z = first; z < last; ++z) {
            const float* plane = in.plane(step.plane + (z - 1) * d);
            planes_at[z] = plane ? plane + offset : nullptr;
            even = even && plane;
        }
        const int64_t tap = int64_t(step.pair ? 1 : 3) * layer.in * reach;
        float* to = s.transformed.data;
        s.rows.clear();
        auto transform_all = [&](auto rows_of) {
            for (int z = first; z < (step.pair ? 1 : last); ++z)
                for (int i = 0; i < layer.in; ++i, to += reach) {
                    const auto rows = rows_of(i * in.channel_stride);
                    if (step.pair) transform_planes(rows, in.channel_stride, reach, to, tap);
                    else transform_rows(rows, z, in.channel_stride, reach, to, tap);
                    s.rows.push_back(to);
                }
        };
        if (even) transform_all([&](int64_t channel) {
            EvenRows rows{{}, int64_t(d) * in.stride};
            for (int z = first; z < last; ++z) rows.planes[z] = planes_at[z] + channel;
            return rows;
        });
        else transform_all([&](int64_t channel) {
            AnyRows rows;
            for (int z = first; z < last; ++z)
                for (int k = 0; k < 6; ++k)
                    rows.rows[z * 6 + k] = planes_at[z] && piece.first + k * d < in.rows
                        ? planes_at[z] + channel + int64_t(k) * d * in.stride : zeros.data();
            return rows;
        });
        if (step.pair) first = 0;
        const int rows_out = planes_out * piece.present, all_runs = layer.out * rows_out;
        int asked = 0, calls = 0;
        const InnerRow inner_row = inner_for<MAX_BLOCK>(layer.block);
        const InnerPairs inner_pairs = inner_pairs_for<MAX_BLOCK>(layer.block);
        const int count = int(s.rows.size());
        Ahead ahead{};
        if (next && !layer.columns) {  // with many channels multiplying decides
            ask_ahead(l, step, piece, *next, reach, ahead);
            ahead.steps = taps * layer.blocks * std::max(1, wide / (4 * LANES));
        }
        const int64_t rows_weights = int64_t(layer.in) * layer.block, tap_weights = (step.pair ? 1 : 3) * rows_weights;
        for (int t = 0; t < taps; ++t) {
            if (layer.columns) transform_columns(s.rows.data(), count, t * tap, wide, pairs, s.columns.data);
            for (int b = 0; b < layer.blocks; ++b) {
                const int64_t at = int64_t(t) * layer.blocks + b;
                const float* weight = step.pair ? layer.paired.data() + at * weights : layer.winograd.data() + at * 3 * weights;
                float* to = s.products.data + t * products + int64_t(b) * layer.block * chunk;
                if (layer.columns)
                    inner_pairs(s.columns.data, count, wide, weight + first * rows_weights, tap_weights, pairs, to, chunk);
                else inner_row(s.rows.data(), count, wide, t * tap + d, d, weight + first * weights, to, chunk, &ahead);
                // What is going to be written is asked for meanwhile.
                for (const int until = int(int64_t(++calls) * all_runs / (taps * layer.blocks)); asked < until; ++asked) {
                    const int row = asked % rows_out, o = asked / rows_out;
                    const float* to = piece.to[row < piece.present ? row : 4 + row - piece.present] + o * piece.to_stride;
                    for (int x = 0; x < piece.count; x += 16) __builtin_prefetch(to + x, 1);
                }
            }
        }
        const Combine combine = step.pair ? combine_for<true>(layer.activation) : combine_for<false>(layer.activation);
        for (int o = 0; o < layer.out; ++o) {
            float* to[8];
            for (int k = 0; k < (step.pair ? 8 : 4); ++k) to[k] = k % 4 < piece.present ? piece.to[k] + o * piece.to_stride : nullptr;
            combine(s.products.data + int64_t(o) * chunk, products, piece.count, layer.bias[o], to, piece.present);
        }
    }

    void directly(int l, int p, const Piece& piece, float* const to[4], Scratch& s) {
        const Convolution& layer = *layers[l];
        const Planes& in = planes[l];
        const int d = layer.dilation;
        const InnerRow inner_row = inner_for<MAX_BLOCK>(layer.block);
        const auto [first, last] = inside(in, p, d);
        for (int k = 0; k < piece.present; ++k) {
            s.rows.clear();
            for (int z = first; z < last; ++z)
                for (int r = 0; r < 3; ++r)
                    for (int i = 0; i < layer.in; ++i)
                        s.rows.push_back(in.plane(p + (z - 1) * d) + i * in.channel_stride +
                                         int64_t(in.first[0] + piece.first + (k + r) * d) * in.stride + in.first[1] + piece.from);
            for (int b = 0; b < layer.blocks; ++b)
                inner_row(s.rows.data(), int(s.rows.size()), piece.wide, 0, d,
                          layer.direct.data() + (int64_t(b) * 3 + first) * layer.in * 9 * layer.block,
                          s.products.data + int64_t(b) * layer.block * chunk, chunk, nullptr);
            for (int o = 0; o < layer.out; ++o)
                for (int x = 0; x < piece.count; x += LANES)
                    store_part(to[k] + o * piece.to_stride + x,
                               activate(load(s.products.data + int64_t(o) * chunk + x) + layer.bias[o], layer.activation),
                               piece.count - x);
        }
    }

    void classify(const float* features, int channels, int p, int row, int from, int count, float* logits) {
        const Classes to{head_weight, head_bias, channels, classes, output, out, int64_t(out_shape[0]) * out_shape[1] * out_shape[2]};
        to.classify(features, chunk, count, logits, chunk, position(p, row, from));
    }

    void run(int threads);
};

void Column::run(int threads) {
    size_t part[5];
    scratch_floats(part);
    std::vector<Scratch> scratch(threads);
    for (Scratch& s : scratch) {
        s.transformed.allocate(part[0]);
        s.products.allocate(part[1]);
        s.features.allocate(part[2]);
        s.logits.allocate(part[3]);
        s.columns.allocate(part[4]);
        for (auto* layer : layers) s.rows.reserve(9 * layer->in);
    }
    std::vector<std::vector<std::vector<Piece>>> pieces;  // for each layer all, then the middle's
    for (int l = 0; l < int(layers.size()); ++l)
        for (const bool middle : {false, true}) pieces.push_back(cut(l, middle, threads));
    // Each thread begins with a share of its own, the same rows in every plane, whose neighbours its cache may still
    // hold; then it takes what others have left.
    std::vector<Counter> counters(2 * threads);
    in_threads(threads, [&](int t, Barrier& barrier) {
        Scratch& s = scratch[t];
        for (size_t i = 0; i < steps.size(); ++i) {
            const Step& step = steps[i];
            if (t == 0) meshnet_progress(int(i), int(steps.size()));
            Counter* taken = counters.data() + i % 2 * threads;
            for (int z = 0; step.layer + 1 < int(layers.size()) && z < (step.pair ? 2 : 1); ++z)
                planes[step.layer + 1].ask_for_pages(step.plane + (z ? layers[step.layer]->dilation : 0), t, barrier.total);
            for (int k = 0; k < threads; ++k) {
                const int share = (t + k) % threads;
                auto take = [&] { return taken[share].next(); };
                if (step.layer < 0) {
                    for (int item; share == 0 && (item = take()) < planes[0].channels;) read_plane(step.plane, item);
                    continue;
                }
                const auto& mine = pieces[2 * step.layer + middle_only(step)][share];
                for (int item; (item = take()) < int(mine.size());)  // the next one is most likely this thread's too
                    compute(step, mine[item], item + 1 < int(mine.size()) ? &mine[item + 1] : nullptr, s);
            }
            barrier.wait();  // the counters are used again after the next one
            for (int share = t; share < threads; share += barrier.total) taken[share].reset();
        }
    });
}
