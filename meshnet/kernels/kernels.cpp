// Dilated 3x3x3 convolutions for the CPU, and a whole MeshNet streamed plane by plane.
//
// Vectors run along z (here: columns), so that any number of channels fills them; the sums of a block of output
// channels stay in registers. Axis 0 of the volume is streamed in planes: each layer keeps the 2d + 1 planes that the
// next one looks at, and nothing is computed twice. Along axis 1 (rows) four outputs that lie d apart share their
// products (Winograd's F(4, 3), Lavin & Gray 2015, arXiv 1509.09308): 6 instead of 12. Where there is room to keep
// 3d + 1 planes and more, two planes that lie d apart are computed together (F(2, 3), 4 products instead of 6), which
// also reads each plane twice instead of three times. With many channels two columns that lie d apart do the same.
//
// What sees neither the head nor the volume's end need not be computed: it is a copy of what lies beside it (gaps, see
// boxes.py). A plane is kept row by row, each row with its channels one after the other, so that a piece of work touches
// few pages of memory, and a thread works on the same rows in every plane, so that its cache may still hold them. Where
// layers are alike and have no gaps they take the room for their planes from one pool (share_slots); what the next piece
// of work reads is asked for meanwhile (Ahead).
//
// Everything is deterministic: each output is computed by one thread in a fixed order, sums over space run over a fixed
// list of parts that does not depend on the number of threads.
//
// To be read in this order: cpu/vectors.h, inner.h (the multiplying), winograd.h (the transforms), convolution.h (packed
// weights), planes.h (what is kept), plan.h (the order of the work), threads.h, classes.h, column.h (the work); gradient.h and
// norm.h are for training. Below is what Python calls, and in a web page JavaScript (web.py, where __wasm__ is defined).

#include <algorithm>
#include <cstdint>
#include <new>
#include <vector>

#include "cpu/column.h"
#include "cpu/gradient.h"
#include "cpu/norm.h"

extern "C" {

// A column of 3x3x3 convolutions, then either its features or a 1x1x1 layer to the classes.
struct Request {
    int layers;             // 3x3x3 convolutions
    const int* widths;      // layers + 1: channels of the input and of each layer
    const int* dilations;   // layers
    const int* activations; // layers
    const int* pairs;       // layers: whether planes go in pairs
    const float* const* weights;
    const float* const* biases;  // entries may be null
    const int* boxes;       // (layers + 1) x 6: a0, b0, a1, b1, a2, b2
    const int* gaps;        // (layers + 1) x 12: for each axis the lower one's a and b, the higher one's a and b
    const int* shape;       // 3
    const float* volume;    // (C, *shape)
    const float* head_weight;    // (classes, channels) or null
    const float* head_bias;      // (classes)
    int classes, output, threads;
    void* out;
    const int* out_shape;   // 3
    const int* out_at;      // 3
};

static void fill_column(Column& column, const Request& q) {
    for (int l = 0; l <= q.layers; ++l) {
        const int *b = q.boxes + 6 * l, *gap = q.gaps + 12 * l;
        Box box{{b[0], b[2], b[4]}, {b[1], b[3], b[5]}, {}, {}};
        for (int axis = 0; axis < 3; ++axis, gap += 4) box.low[axis] = {gap[0], gap[1]}, box.high[axis] = {gap[2], gap[3]};
        column.boxes.push_back(box);
    }
    for (int l = 0; l < q.layers; ++l)
        column.layers.push_back(new Convolution(q.widths[l], q.widths[l + 1], q.dilations[l], q.activations[l],
                                                q.pairs[l], q.weights ? q.weights[l] : nullptr,
                                                q.biases ? q.biases[l] : nullptr));
    std::copy(q.shape, q.shape + 3, column.shape);
    column.classes = q.classes, column.output = q.output;
    column.choose_chunk();
    column.steps = column.schedule();
    const auto slots = column.slots_for(column.steps);
    column.planes = std::vector<Planes>(q.layers);
    for (int l = 0; l < q.layers; ++l)
        column.planes[l].prepare(q.widths[l], slots[l], column.boxes[l], column.boxes[l + 1], q.dilations[l], q.shape);
    column.share_slots();
}

// Bytes that meshnet_run is going to take; only the request's sizes are looked at.
int64_t meshnet_bytes(const Request* request) {
    try {
        Column column;
        fill_column(column, *request);
        return column.bytes(std::max(1, request->threads));
    } catch (const std::bad_alloc&) {
        return -1;
    }
}

int meshnet_run(const Request* request) {
    try {
        const Request& q = *request;
        Column column;
        fill_column(column, q);
        std::copy(q.out_shape, q.out_shape + 3, column.out_shape);
        std::copy(q.out_at, q.out_at + 3, column.out_at);
        column.volume = q.volume, column.head_weight = q.head_weight, column.head_bias = q.head_bias;
        column.out = q.out;
        int64_t longest = 0;
        for (auto& planes : column.planes) {
            if (planes.slot.empty()) planes.kept.allocate(planes.slots * planes.plane_floats()), planes.memory = planes.kept.data;
            else {
                if (!column.pool.data) column.pool.allocate(column.pooled * planes.plane_floats());
                planes.memory = column.pool.data;
            }
            longest = std::max<int64_t>(longest, planes.channel_stride + 3 * planes.pad);
        }
        column.zeros.assign(longest + 4 * LANES, 0.f);
        column.run(std::max(1, q.threads));
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

// The 1x1x1 layer on whole maps y (channels, voxels), behind which there is room for a vector: logits or probabilities
// (classes, voxels), or labels (voxels) uint8.
int meshnet_classes(const float* y, int channels, int64_t voxels, const float* weight, const float* bias, int classes,
                    int output, void* out, int threads) {
    try {
        const Classes to{weight, bias, channels, classes, output, out, voxels};
        constexpr int ROW = 1 << 10;
        std::vector<float> logits(size_t(threads) * classes * ROW);
        std::atomic<int64_t> next{0};
        in_threads(threads, [&](int t, Barrier&) {
            for (int64_t at; (at = ROW * next.fetch_add(1, std::memory_order_relaxed)) < voxels;)
                to.classify(y + at, voxels, int(std::min<int64_t>(ROW, voxels - at)), &logits[size_t(t) * classes * ROW], ROW, at);
        });
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

// The gradient (out, in, 3, 3, 3) of a convolution's weights, from its input (in, *shape) and its output's gradient
// (out, *shape).
int meshnet_weight_gradient(const float* x, const float* g, int in, int out, int dilation, const int* shape,
                            float* result, int threads) {
    try {
        WeightGradient work;
        work.in = in, work.out = out, work.dilation = dilation, work.x = x, work.g = g;
        std::copy(shape, shape + 3, work.shape);
        work.prepare();
        work.run(std::max(1, threads));
        work.finish(result);
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

// Mean and biased variance of each channel of y (batch, channels, voxels).
int meshnet_statistics(const float* y, int batch, int channels, int64_t voxels, double* mean, double* variance,
                       int threads) {
    try {
        const int64_t pieces = (voxels + PIECE - 1) / PIECE * batch;
        std::vector<double> means(pieces * channels), squares(pieces * channels), counts(pieces * channels);
        in_pieces(batch, channels, voxels, threads, [&](int c, int64_t at, int count, int64_t piece) {
            vec sum[4] = {};
            for (int x = 0, k = 0; x < count; x += LANES, k = (k + 1) % 4) sum[k] += load_part(y + at + x, count - x);
            const double middle = (total(sum[0]) + total(sum[1]) + total(sum[2]) + total(sum[3])) / count;
            const vec shift = spread(float(middle));
            vec square[4] = {};
            int x = 0;
            for (int k = 0; x + LANES <= count; x += LANES, k = (k + 1) % 4) {
                vec d = load(y + at + x) - shift;
                square[k] += d * d;
            }
            double rest = total(square[0]) + total(square[1]) + total(square[2]) + total(square[3]);
            for (; x < count; ++x) rest += (double(y[at + x]) - float(middle)) * (double(y[at + x]) - float(middle));
            const int64_t to = c * pieces + piece;
            means[to] = middle, squares[to] = rest, counts[to] = count;
        });
        for (int c = 0; c < channels; ++c) {  // Chan, Golub & LeVeque 1983
            double n = 0, middle = 0, square = 0;
            for (int64_t p = c * pieces; p < (c + 1) * pieces; ++p) {
                const double step = means[p] - middle, both = n + counts[p];
                middle += step * counts[p] / both;
                square += squares[p] + step * step * n * counts[p] / both;
                n = both;
            }
            mean[c] = middle, variance[c] = square / n;
        }
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

// z = activation(scale * y + shift); z may be y.
void meshnet_norm(const float* y, float* z, int batch, int channels, int64_t voxels, const float* scale,
                  const float* shift, int activation, int threads) {
    in_pieces(batch, channels, voxels, threads, [&](int c, int64_t at, int count, int64_t) {
        for (int x = 0; x < count; x += LANES)
            store_part(z + at + x, activate(scale[c] * load_part(y + at + x, count - x) + shift[c], activation), count - x);
    });
}

// Per channel: the sum of the gradient before the activation, and of that times (y - mean).
int meshnet_norm_sums(const float* y, const float* g, int batch, int channels, int64_t voxels, const float* scale,
                      const float* shift, const float* mean, int activation, double* of_shift, double* of_scale,
                      int threads) {
    try {
        const int64_t pieces = (voxels + PIECE - 1) / PIECE * batch;
        std::vector<double> ones(pieces * channels), others(pieces * channels);
        in_pieces(batch, channels, voxels, threads, [&](int c, int64_t at, int count, int64_t piece) {
            vec one[2] = {}, other[2] = {};
            for (int x = 0, k = 0; x < count; x += LANES, k ^= 1) {
                const vec value = load_part(y + at + x, count - x);
                const vec d = load_part(g + at + x, count - x) * slope(scale[c] * value + shift[c], activation);
                one[k] += d;
                other[k] += d * (value - mean[c]);
            }
            ones[c * pieces + piece] = total(one[0]) + total(one[1]);
            others[c * pieces + piece] = total(other[0]) + total(other[1]);
        });
        for (int c = 0; c < channels; ++c) {
            of_shift[c] = of_scale[c] = 0;
            for (int64_t p = c * pieces; p < (c + 1) * pieces; ++p) of_shift[c] += ones[p], of_scale[c] += others[p];
        }
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

// result = scale * (g before the activation - constant - slope_of_y * (y - mean)); result may be g.
void meshnet_norm_backward(const float* y, const float* g, float* result, int batch, int channels, int64_t voxels,
                           const float* scale, const float* shift, const float* mean, const float* constant,
                           const float* slope_of_y, int activation, int threads) {
    in_pieces(batch, channels, voxels, threads, [&](int c, int64_t at, int count, int64_t) {
        for (int x = 0; x < count; x += LANES) {
            const vec value = load_part(y + at + x, count - x);
            const vec d = load_part(g + at + x, count - x) * slope(scale[c] * value + shift[c], activation);
            store_part(result + at + x, scale[c] * (d - constant[c] - slope_of_y[c] * (value - mean[c])), count - x);
        }
    });
}

#if defined(__wasm__)  // there are no exceptions there: what would be thrown (out of memory) is a trap
void* __cxa_allocate_exception(size_t) { __builtin_trap(); }
void __cxa_throw(void*, void*, void (*)(void*)) { __builtin_trap(); }
#endif

}
