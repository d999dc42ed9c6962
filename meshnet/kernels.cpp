// Dilated 3x3x3 convolutions for the CPU, and a whole MeshNet streamed plane by plane.
//
// Vectors run along z (here: columns), so that any number of channels fills them; the sums of a block of output
// channels stay in registers. Axis 0 of the volume is streamed in planes: each layer keeps the 2d + 1 planes that the
// next one looks at, and nothing is computed twice. Along axis 1 (rows) four outputs that lie d apart share their
// products (Winograd's F(4, 3), Lavin & Gray 2015, arXiv 1509.09308): 6 instead of 12.
//
// Everything is deterministic: each output is computed by one thread in a fixed order, sums over space run over a fixed
// list of parts that does not depend on the number of threads.

#include <atomic>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(__AVX__)
constexpr int LANES = 8, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int LANES = 4, REGISTERS = 32;
#else
constexpr int LANES = 4, REGISTERS = 16;
#endif
constexpr int MAX_BLOCK = REGISTERS == 32 ? 13 : 6;  // output channels whose sums fit the registers, two vectors each
constexpr int WIDE_BLOCK = REGISTERS == 32 ? 6 : 3;  // up to this many channels, four vectors each
constexpr int TAPS = 6;                              // products of F(4, 3)

typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

static inline vec load(const float* p) { return *reinterpret_cast<const vec*>(p); }
static inline void store(float* p, vec v) { *reinterpret_cast<vec*>(p) = v; }
static inline void store_part(float* p, vec v, int count) {
    if (count >= LANES) store(p, v);
    else std::memcpy(p, &v, count * sizeof(float));
}
static inline vec spread(float x) { return vec{} + x; }
static inline vec choose(ivec mask, vec yes, vec no) { return mask ? yes : no; }
static inline int round_up(int n, int to) { return (n + to - 1) / to * to; }

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
        case RELU: return choose(x > spread(0.f), x, spread(0.f));
        case ELU: return choose(x > spread(0.f), x, exponential(choose(x > spread(0.f), spread(0.f), x)) - 1.f);
        case GELU: return 0.5f * x * (1.f + error_function(x * 0.70710678f));
        default: return x;
    }
}

// ---------------------------------------------------------------- the inner loop

// out[o][v] = sum over rows k and the three columns c of weight[k][c][o] * rows[k][(c - 1) * dilation + v]
template <int OUT, int VECTORS>
static inline void inner(const float* const* rows, int count, int64_t offset, int dilation, const float* weight,
                         float* out, int64_t out_stride) {
    vec sum[OUT][VECTORS] = {};
    for (int k = 0; k < count; ++k) {
        const float* row = rows[k] + offset - dilation;
        for (int c = 0; c < 3; ++c, row += dilation, weight += OUT) {
            vec x[VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) x[v] = load(row + v * LANES);
#pragma GCC unroll 16
            for (int o = 0; o < OUT; ++o) {
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; ++v) sum[o][v] += weight[o] * x[v];
            }
        }
    }
#pragma GCC unroll 16
    for (int o = 0; o < OUT; ++o)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) store(out + o * out_stride + v * LANES, sum[o][v]);
}

template <int OUT>
static void inner_row(const float* const* rows, int count, int width, int64_t offset, int dilation,
                      const float* weight, float* out, int64_t out_stride) {
    constexpr int VECTORS = OUT <= WIDE_BLOCK ? 4 : 2;
    int x = 0;
    for (; x + VECTORS * LANES <= width; x += VECTORS * LANES)
        inner<OUT, VECTORS>(rows, count, offset + x, dilation, weight, out + x, out_stride);
    for (; x < width; x += LANES) inner<OUT, 1>(rows, count, offset + x, dilation, weight, out + x, out_stride);
}

typedef void (*InnerRow)(const float* const*, int, int, int64_t, int, const float*, float*, int64_t);
template <int OUT>
static InnerRow inner_for(int block) {
    if constexpr (OUT == 0) return nullptr;
    else return block == OUT ? inner_row<OUT> : inner_for<OUT - 1>(block);
}

// ---------------------------------------------------------------- one layer's weights, packed

static const double G[TAPS][3] = {{1 / 4., 0, 0},           {-1 / 6., -1 / 6., -1 / 6.}, {-1 / 6., 1 / 6., -1 / 6.},
                                  {1 / 24., 1 / 12., 1 / 6.}, {1 / 24., -1 / 12., 1 / 6.}, {0, 0, 1}};

struct Convolution {
    int in, out, dilation, activation, block, blocks;
    std::vector<float> direct;    // [block][plane][row][in][column][out of block]
    std::vector<float> winograd;  // [tap][block][plane][in][column][out of block]
    std::vector<float> bias;      // padded to whole blocks

    Convolution(int in, int out, int dilation, int activation, const float* weight, const float* bias_in)
        : in(in), out(out), dilation(dilation), activation(activation) {
        blocks = (out + MAX_BLOCK - 1) / MAX_BLOCK;
        block = (out + blocks - 1) / blocks;
        bias.assign(blocks * block, 0.f);
        if (bias_in) std::copy(bias_in, bias_in + out, bias.begin());
        direct.assign(size_t(blocks) * block * in * 27, 0.f);
        winograd.assign(size_t(blocks) * block * in * 9 * TAPS, 0.f);
        for (int o = 0; o < out; ++o)
            for (int i = 0; i < in; ++i)
                for (int z = 0; z < 3; ++z)
                    for (int c = 0; c < 3; ++c) {
                        const float* w = weight + ((size_t(o) * in + i) * 3 + z) * 9 + c;  // rows lie 3 apart
                        size_t b = o / block, within = o % block;
                        for (int r = 0; r < 3; ++r)
                            direct[((((b * 3 + z) * 3 + r) * in + i) * 3 + c) * block + within] = w[r * 3];
                        for (int t = 0; t < TAPS; ++t)
                            winograd[((((t * blocks + b) * 3 + z) * in + i) * 3 + c) * block + within] =
                                float(G[t][0] * w[0] + G[t][1] * w[3] + G[t][2] * w[6]);
                    }
    }
};

// ---------------------------------------------------------------- planes that a layer keeps for the next one

struct Box { int a[3], b[3]; };

struct Free { void operator()(float* p) const { std::free(p); } };
static float* allocate(size_t floats) {
    void* p = std::aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64);
    if (!p) throw std::bad_alloc();
    return static_cast<float*>(p);
}

struct Planes {
    Box box;                // what is computed
    int origin[2];          // row and column of the first stored voxel
    int rows, stride, pad;  // stored rows, floats from row to row, columns before the next layer's first column
    int slots, depth;       // planes kept; planes of the whole volume
    int channels;
    int64_t channel_stride;
    float *data = nullptr, *constant = nullptr;

    ~Planes() { std::free(data); std::free(constant); }
    int64_t plane_floats() const { return channels * channel_stride; }

    // Room for what `next` looks at; air outside `box`, zero outside the volume.
    void prepare(int channels_, const Box& box_, const Box& next, int dilation, const int* shape, const float* air) {
        channels = channels_, box = box_, depth = shape[0];
        pad = round_up(dilation, LANES);
        origin[0] = next.a[1] - dilation, origin[1] = next.a[2] - pad;
        rows = next.b[1] - next.a[1] + 2 * dilation;
        stride = round_up(next.b[2] - next.a[2], LANES) + 2 * pad;
        channel_stride = int64_t(rows) * stride + 5 * 16;  // an odd number of cache lines: channels do not collide
        slots = std::max(1, std::min(2 * dilation + 1, box.b[0] - box.a[0]));
        data = allocate(slots * plane_floats());
        bool beyond = std::max(0, next.a[0] - dilation) < box.a[0] ||
                      std::min(depth, next.b[0] + dilation) > box.b[0];
        if (beyond) constant = allocate(plane_floats());
        for (int s = 0; s < slots + (beyond ? 1 : 0); ++s) {
            float* plane = s < slots ? data + s * plane_floats() : constant;
            std::memset(plane, 0, plane_floats() * sizeof(float));
            for (int c = 0; c < channels; ++c)
                if (air && air[c] != 0.f)
                    for (int r = std::max(0, -origin[0]); r < std::min(rows, shape[1] - origin[0]); ++r) {
                        float* row = plane + c * channel_stride + int64_t(r) * stride;
                        int first = std::max(0, -origin[1]), last = std::min(stride, shape[2] - origin[1]);
                        if (first < last) std::fill(row + first, row + last, air[c]);
                    }
        }
    }
    float* plane(int p) const {  // null outside the volume
        if (p < 0 || p >= depth) return nullptr;
        if (p < box.a[0] || p >= box.b[0]) return constant;
        return data + ((p - box.a[0]) % slots) * plane_floats();
    }
};

// ---------------------------------------------------------------- threads

struct Barrier {
    std::atomic<int> waiting{0}, round{0};
    int total = 1;
    void wait() {
        int now = round.load(std::memory_order_acquire);
        if (waiting.fetch_add(1, std::memory_order_acq_rel) + 1 == total) {
            waiting.store(0, std::memory_order_relaxed);
            round.store(now + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; round.load(std::memory_order_acquire) == now; ++spins)
            if (spins > 4000) std::this_thread::yield();
    }
};

template <class Work>
static void in_threads(int threads, Work work) {
    std::vector<std::thread> others;
    for (int t = 1; t < threads; ++t) others.emplace_back([&work, t] { work(t); });
    work(0);
    for (auto& other : others) other.join();
}

struct Scratch {
    float *transformed = nullptr, *products = nullptr, *features = nullptr, *logits = nullptr;
    std::vector<const float*> rows;
    ~Scratch() { std::free(transformed); std::free(products); std::free(features); std::free(logits); }
};

// ---------------------------------------------------------------- F(4, 3)

static void transform_rows(const float* const in[6], int width, float* out, int64_t tap_stride) {
    for (int x = 0; x < width; x += LANES) {
        vec d0 = load(in[0] + x), d1 = load(in[1] + x), d2 = load(in[2] + x), d3 = load(in[3] + x),
            d4 = load(in[4] + x), d5 = load(in[5] + x);
        vec p = d4 - 4.f * d2, q = d3 - 4.f * d1, r = d4 - d2, s = 2.f * (d3 - d1);
        store(out + x, 4.f * d0 - 5.f * d2 + d4);
        store(out + tap_stride + x, p + q);
        store(out + 2 * tap_stride + x, p - q);
        store(out + 3 * tap_stride + x, r + s);
        store(out + 4 * tap_stride + x, r - s);
        store(out + 5 * tap_stride + x, 4.f * d1 - 5.f * d3 + d5);
    }
}

// ---------------------------------------------------------------- a column of layers

enum Output { FEATURES = 0, LOGITS = 1, PROBABILITIES = 2, LABELS = 3 };

struct Column {
    std::vector<Convolution*> layers;
    std::vector<Box> boxes;  // boxes[0] the input, boxes[l + 1] what layers[l] computes
    std::vector<Planes> planes;
    int shape[3];
    const float* volume;
    const float *head_weight = nullptr, *head_bias = nullptr;
    int classes = 0, output = FEATURES, chunk = 0;
    void* out = nullptr;
    int out_shape[3], out_at[3];  // the array to write into, and where the box's first voxel lies in it
    std::vector<float> zeros;

    ~Column() { for (auto* layer : layers) delete layer; }

    int width(int layer) const { return boxes[layer + 1].b[2] - boxes[layer + 1].a[2]; }
    int height(int layer) const { return boxes[layer + 1].b[1] - boxes[layer + 1].a[1]; }
    int groups(int layer) const {  // groups of four rows that lie d apart
        int d = layers[layer]->dilation, h = height(layer);
        return h / (4 * d) * d + std::min(d, h % (4 * d));
    }
    int chunks(int layer) const { return (width(layer) + chunk - 1) / chunk; }

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

    void compute(int l, int p, int item, Scratch& s) {
        const Convolution& layer = *layers[l];
        const Planes& in = planes[l];
        const int d = layer.dilation, parts = chunks(l), h = height(l);
        const int from = item % parts * chunk, count = std::min(chunk, width(l) - from), group = item / parts;
        const int first = group / d * 4 * d + group % d;
        int present = 0;
        while (present < 4 && first + present * d < h) ++present;
        const int wide = round_up(count, LANES);
        const bool last = l + 1 == int(layers.size()), fused = last && output != FEATURES;
        const InnerRow inner_row = inner_for<MAX_BLOCK>(layer.block);
        const bool transform = present >= 3 && layer.in >= 3;
        float* to[4];
        int64_t to_stride = 0;
        for (int k = 0; k < present; ++k)
            to[k] = fused ? s.features + int64_t(k) * layer.out * chunk : target(l, p, first + k * d, from, to_stride);
        if (fused) to_stride = chunk;

        int first_z = 0, last_z = 3;  // planes outside the volume are zero: left out
        while (first_z < 3 && !in.plane(p + (first_z - 1) * d)) ++first_z;
        while (last_z > first_z && !in.plane(p + (last_z - 2) * d)) --last_z;
        if (transform) {
            const int reach = round_up(wide + 2 * d, LANES);
            const int64_t row_floats = reach, tap_floats = int64_t(3) * layer.in * row_floats;
            s.rows.clear();
            for (int z = first_z; z < last_z; ++z)
                for (int i = 0; i < layer.in; ++i) {
                    const float* channel = in.plane(p + (z - 1) * d) + i * in.channel_stride;
                    const float* rows[6];
                    for (int k = 0; k < 6; ++k) {
                        int row = first + k * d;
                        rows[k] = row < in.rows ? channel + int64_t(row) * in.stride + in.pad + from - d : zeros.data();
                    }
                    float* t = s.transformed + (int64_t(z) * layer.in + i) * row_floats;
                    transform_rows(rows, reach, t, tap_floats);
                    s.rows.push_back(t);
                }
            const int64_t tap_products = int64_t(layer.blocks) * layer.block * chunk;
            for (int t = 0; t < TAPS; ++t) {
                for (int b = 0; b < layer.blocks; ++b)
                    inner_row(s.rows.data(), int(s.rows.size()), wide, t * tap_floats + d, d,
                              layer.winograd.data() +
                                  ((int64_t(t) * layer.blocks + b) * 3 + first_z) * layer.in * 3 * layer.block,
                              s.products + t * tap_products + int64_t(b) * layer.block * chunk, chunk);
            }
            for (int o = 0; o < layer.out; ++o)
                for (int x = 0; x < wide; x += LANES) {
                    const float* m = s.products + int64_t(o) * chunk + x;
                    vec m0 = load(m), m1 = load(m + tap_products), m2 = load(m + 2 * tap_products),
                        m3 = load(m + 3 * tap_products), m4 = load(m + 4 * tap_products), m5 = load(m + 5 * tap_products);
                    vec a = m1 + m2, b = m1 - m2, c = m3 + m4, e = m3 - m4, bias = spread(layer.bias[o]);
                    vec y[4] = {m0 + a + c + bias, b + 2.f * e + bias, a + 4.f * c + bias, b + 8.f * e + m5 + bias};
                    for (int k = 0; k < present; ++k)
                        store_part(to[k] + o * to_stride + x, activate(y[k], layer.activation), count - x);
                }
        } else {
            for (int k = 0; k < present; ++k) {
                s.rows.clear();
                for (int z = first_z; z < last_z; ++z)
                    for (int r = 0; r < 3; ++r)
                        for (int i = 0; i < layer.in; ++i)
                            s.rows.push_back(in.plane(p + (z - 1) * d) + i * in.channel_stride +
                                             int64_t(first + (k + r) * d) * in.stride + in.pad + from);
                for (int b = 0; b < layer.blocks; ++b)
                    inner_row(s.rows.data(), int(s.rows.size()), wide, 0, d,
                              layer.direct.data() + (int64_t(b) * 3 + first_z) * layer.in * 9 * layer.block,
                              s.products + int64_t(b) * layer.block * chunk, chunk);
                for (int o = 0; o < layer.out; ++o)
                    for (int x = 0; x < wide; x += LANES)
                        store_part(to[k] + o * to_stride + x,
                                   activate(load(s.products + int64_t(o) * chunk + x) + layer.bias[o], layer.activation),
                                   count - x);
            }
        }
        if (fused)
            for (int k = 0; k < present; ++k) classify(to[k], layer.out, p, first + k * d, from, count, s.logits);
    }

    // The 1x1x1 layer on one row of features, then what was asked for.
    void classify(const float* features, int channels, int p, int row, int from, int count, float* logits) {
        const int wide = round_up(count, LANES);
        for (int k = 0; k < classes; ++k)
            for (int x = 0; x < wide; x += LANES) {
                vec sum = spread(head_bias[k]);
                for (int c = 0; c < channels; ++c) sum += head_weight[k * channels + c] * load(features + int64_t(c) * chunk + x);
                store(logits + int64_t(k) * chunk + x, sum);
            }
        const int64_t at = position(p, row, from), step = int64_t(out_shape[0]) * out_shape[1] * out_shape[2];
        if (output == LABELS) {
            uint8_t* to = static_cast<uint8_t*>(out) + at;
            for (int x = 0; x < count; ++x) {
                int best = 0;
                for (int k = 1; k < classes; ++k)
                    if (logits[int64_t(k) * chunk + x] > logits[int64_t(best) * chunk + x]) best = k;
                to[x] = uint8_t(best);
            }
            return;
        }
        float* to = static_cast<float*>(out) + at;
        for (int x = 0; x < wide; x += LANES) {
            if (output == PROBABILITIES) {
                vec top = load(logits + x), sum = {};
                for (int k = 1; k < classes; ++k) {
                    vec y = load(logits + int64_t(k) * chunk + x);
                    top = choose(y > top, y, top);
                }
                for (int k = 0; k < classes; ++k) {
                    vec e = exponential(load(logits + int64_t(k) * chunk + x) - top);
                    store(logits + int64_t(k) * chunk + x, e);
                    sum += e;
                }
                for (int k = 0; k < classes; ++k)
                    store(logits + int64_t(k) * chunk + x, load(logits + int64_t(k) * chunk + x) / sum);
            }
            for (int k = 0; k < classes; ++k)
                store_part(to + k * step + x, load(logits + int64_t(k) * chunk + x), count - x);
        }
    }

    // The order in which planes are computed: (layer, plane), layer -1 reads the input.
    std::vector<std::pair<int, int>> schedule() const {
        std::vector<std::pair<int, int>> steps;
        std::vector<int> done(boxes.size());
        for (size_t l = 0; l < boxes.size(); ++l) done[l] = boxes[l].a[0];
        auto advance = [&](auto&& self, int level, int until) -> void {
            until = std::min(until, boxes[level].b[0]);
            while (done[level] < until) {
                if (level > 0) self(self, level - 1, done[level] + layers[level - 1]->dilation + 1);
                steps.emplace_back(level - 1, done[level]++);
            }
        };
        advance(advance, int(boxes.size()) - 1, boxes.back().b[0]);
        return steps;
    }

    void scratch_floats(size_t part[4]) const {
        part[0] = part[1] = part[2] = 1;
        for (auto* layer : layers) {
            part[0] = std::max(part[0], size_t(TAPS) * 3 * layer->in * (round_up(chunk + 2 * layer->dilation, LANES)));
            part[1] = std::max(part[1], size_t(TAPS) * layer->blocks * layer->block * chunk);
        }
        part[2] = size_t(4) * layers.back()->out * chunk;
        part[3] = size_t(std::max(1, classes)) * chunk;
    }

    // Columns in one piece, so that what a thread works on stays in its level-two cache.
    void choose_chunk() {
        int widest = 0, most = 1, reach = 0;
        for (size_t l = 0; l < layers.size(); ++l) {
            widest = std::max(widest, width(int(l)));
            most = std::max(most, layers[l]->in);
            reach = std::max(reach, layers[l]->dilation);
        }
        int fits = 320 * 1024 / (4 * TAPS * 3 * most) - 2 * reach;
        fits = std::max(4 * LANES, fits / (4 * LANES) * 4 * LANES);
        int pieces = std::max(1, (widest + fits - 1) / fits);
        chunk = round_up((widest + pieces - 1) / pieces, 4 * LANES);
    }

    void run(int threads);
};

void Column::run(int threads) {
    const auto steps = schedule();
    size_t part[4];
    scratch_floats(part);
    std::vector<Scratch> scratch(threads);
    for (Scratch& s : scratch) {
        s.transformed = allocate(part[0]);
        s.products = allocate(part[1]);
        s.features = allocate(part[2]);
        s.logits = allocate(part[3]);
        for (auto* layer : layers) s.rows.reserve(9 * layer->in);
    }
    std::vector<std::atomic<int>> next(2);
    for (auto& n : next) n = 0;
    Barrier barrier;
    barrier.total = threads;
    in_threads(threads, [&](int t) {
        Scratch& s = scratch[t];
        for (size_t i = 0; i < steps.size(); ++i) {
            auto [layer, p] = steps[i];
            const int items = layer < 0 ? planes[0].channels : groups(layer) * chunks(layer);
            for (int item; (item = next[i % 2].fetch_add(1, std::memory_order_relaxed)) < items;)
                layer < 0 ? read_plane(p, item) : compute(layer, p, item, s);
            barrier.wait();
            if (t == 0) next[i % 2].store(0, std::memory_order_relaxed);  // used again after the next barrier
        }
    });
}

// ---------------------------------------------------------------- what Python calls

extern "C" {

// A column of 3x3x3 convolutions, then either its features or a 1x1x1 layer to the classes.
struct Request {
    int layers;             // 3x3x3 convolutions
    const int* widths;      // layers + 1: channels of the input and of each layer
    const int* dilations;   // layers
    const int* activations; // layers
    const float* const* weights;
    const float* const* biases;  // entries may be null
    const float* const* air;     // layers: the constant outside boxes[l], channels of entry l; may be null
    const int* boxes;       // (layers + 1) x 6: a0, b0, a1, b1, a2, b2
    const int* shape;       // 3
    const float* volume;    // (C, *shape)
    const float* head_weight;    // (classes, channels) or null
    const float* head_bias;      // (classes)
    int classes, output, threads;
    void* out;
    const int* out_shape;   // 3
    const int* out_at;      // 3
};

int meshnet_run(const Request* request) {
    try {
        const Request& q = *request;
        Column column;
        for (int l = 0; l <= q.layers; ++l) {
            const int* b = q.boxes + 6 * l;
            column.boxes.push_back(Box{{b[0], b[2], b[4]}, {b[1], b[3], b[5]}});
        }
        for (int l = 0; l < q.layers; ++l)
            column.layers.push_back(new Convolution(q.widths[l], q.widths[l + 1], q.dilations[l], q.activations[l],
                                                    q.weights[l], q.biases[l]));
        std::copy(q.shape, q.shape + 3, column.shape);
        std::copy(q.out_shape, q.out_shape + 3, column.out_shape);
        std::copy(q.out_at, q.out_at + 3, column.out_at);
        column.volume = q.volume, column.head_weight = q.head_weight, column.head_bias = q.head_bias;
        column.classes = q.classes, column.output = q.output, column.out = q.out;
        column.choose_chunk();
        column.planes = std::vector<Planes>(q.layers);
        int longest = 0;
        for (int l = 0; l < q.layers; ++l) {
            column.planes[l].prepare(q.widths[l], column.boxes[l], column.boxes[l + 1], q.dilations[l], q.shape,
                                     q.air ? q.air[l] : nullptr);
            longest = std::max(longest, column.planes[l].stride);
        }
        column.zeros.assign(longest + 4 * LANES, 0.f);
        column.run(std::max(1, q.threads));
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

}
