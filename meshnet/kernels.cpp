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

#include <atomic>
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <exception>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include <sys/mman.h>
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
constexpr int MAX_BLOCK = REGISTERS == 32 ? 13 : 6;  // output channels whose sums fit the registers, two vectors each
constexpr int WIDE_BLOCK = REGISTERS == 32 ? 6 : 3;  // up to this many channels, four vectors each
constexpr int TAPS = 6, PAIR_TAPS = 4;               // products of F(4, 3) and of F(2, 3)
constexpr int AHEAD_BYTES = 256 * 1024;  // of the level-two cache, for what the next piece of work reads
constexpr int COLUMNS_FROM = 8;  // input channels from which columns are computed in pairs: with fewer, memory decides

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

// ---------------------------------------------------------------- the inner loop

// out[o][v] = sum over rows k and the three columns c of weight[k][c][o] * rows[k][(c - 1) * dilation + v]
template <int OUT, int VECTORS>
static inline void inner(const float* const* rows, int count, int64_t offset, int dilation, const float* weight,
                         float* out, int64_t out_stride, const float* soon = nullptr, int each = 0) {
    vec sum[OUT][VECTORS] = {};
    for (int k = 0; k < count; ++k) {
        for (int n = 0; n < each; ++n, soon += 16) __builtin_prefetch(soon, 0, 2);
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
    constexpr int VECTORS = OUT <= WIDE_BLOCK ? 4 : OUT * 3 < REGISTERS - 4 ? 3 : 2;
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
        for (int k = 0; k < count; ++k, row += half, weight += OUT) {
            vec x[VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) x[v] = load(row + v * LANES);
#pragma GCC unroll 16
            for (int o = 0; o < OUT; ++o) {
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; ++v) sum[o][v] += weight[o] * x[v];
            }
        }
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
    constexpr int VECTORS = OUT <= WIDE_BLOCK ? 4 : OUT * 3 < REGISTERS - 4 ? 3 : 2;
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

// ---------------------------------------------------------------- one layer's weights, packed

static const double H[PAIR_TAPS][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
static const double G[TAPS][3] = {{1 / 4., 0, 0},           {-1 / 6., -1 / 6., -1 / 6.}, {-1 / 6., 1 / 6., -1 / 6.},
                                  {1 / 24., 1 / 12., 1 / 6.}, {1 / 24., -1 / 12., 1 / 6.}, {0, 0, 1}};

struct Convolution {
    int in, out, dilation, activation, block, blocks;
    std::vector<float> direct;    // [block][plane][row][in][column][out of block]
    std::vector<float> winograd;  // [tap][block][plane][in][column][out of block]; [tap][block][column tap][plane][in]
                                  // [out of block] where columns go in pairs
    std::vector<float> paired;    // [plane tap][tap][block][in][column][out of block], or [plane tap][tap][block]
                                  // [column tap][in][out of block]; empty unless planes go in pairs
    bool pair, columns;           // whether planes, and whether columns, go in pairs
    int across() const { return columns ? PAIR_TAPS : 3; }  // column taps
    std::vector<float> bias;      // padded to whole blocks

    Convolution(int in, int out, int dilation, int activation, bool pair, const float* weight, const float* bias_in)
        : in(in), out(out), dilation(dilation), activation(activation), pair(pair) {
        blocks = (out + MAX_BLOCK - 1) / MAX_BLOCK;
        block = (out + blocks - 1) / blocks;
        bias.assign(blocks * block, 0.f);
        if (bias_in) std::copy(bias_in, bias_in + out, bias.begin());
        direct.assign(size_t(blocks) * block * in * 27, 0.f);
        columns = in >= COLUMNS_FROM && Pairs::possible(dilation);
        winograd.assign(size_t(blocks) * block * in * 3 * TAPS * across(), 0.f);
        paired.assign(pair ? size_t(blocks) * block * in * PAIR_TAPS * TAPS * across() : 0, 0.f);
        if (!weight) return;  // asked for sizes alone
        for (int o = 0; o < out; ++o)
            for (int i = 0; i < in; ++i) {
                const float* w = weight + (size_t(o) * in + i) * 27;
                const size_t b = o / block, within = o % block;
                for (int k = 0; k < 27; ++k)
                    direct[(((b * 9 + k / 3) * in + i) * 3 + k % 3) * block + within] = w[k];
                pack(o, i, w);
            }
    }
    // Index of a transformed weight among the `planes` (or plane taps, then 1) that are summed in one go.
    size_t position(size_t tap, int planes, int z, int o, int i, int c) const {
        const size_t at = tap * blocks + o / block;
        const size_t row = columns ? ((at * PAIR_TAPS + c) * planes + z) * in + i : ((at * planes + z) * in + i) * 3 + c;
        return row * block + o % block;
    }
    void pack(int o, int i, const float* w) {
        for (int t = 0; t < TAPS; ++t)
            for (int c = 0; c < across(); ++c) {
                double plane[3];  // transformed along rows and, where they go in pairs, columns
                for (int z = 0; z < 3; ++z) {
                    plane[z] = 0;
                    for (int r = 0; r < 3; ++r)
                        for (int k = 0; k < 3; ++k)
                            plane[z] += G[t][r] * (columns ? H[c][k] : double(c == k)) * w[z * 9 + r * 3 + k];
                    winograd[position(t, 3, z, o, i, c)] = float(plane[z]);
                }
                for (int u = 0; pair && u < PAIR_TAPS; ++u)
                    paired[position(u * TAPS + t, 1, 0, o, i, c)] =
                        float(H[u][0] * plane[0] + H[u][1] * plane[1] + H[u][2] * plane[2]);
            }
    }
};

// ---------------------------------------------------------------- planes that a layer keeps for the next one

// What a layer computes: along each axis a to b, without two gaps, either of which may be empty. Within a gap all values
// along its axis are those beside it (boxes.py says why), so what reads there gets a copy.
struct Range { int a, b; int size() const { return std::max(0, b - a); } };
struct Box {
    int a[3], b[3];
    Range low[3], high[3];  // the gaps; where they are empty, at a and at b
    Range middle(int axis) const { return {low[axis].b, high[axis].a}; }
    std::array<Range, 3> computed(int axis, bool middle_only = false) const {
        if (middle_only) return {middle(axis)};
        return {Range{a[axis], low[axis].a}, middle(axis), Range{high[axis].b, b[axis]}};
    }
    int size(int axis) const { return b[axis] - a[axis] - low[axis].size() - high[axis].size(); }
    // The number, among what is computed, of p or of what p is a copy of.
    int number(int axis, int p) const {
        const Range &one = low[axis], &two = high[axis];
        if (p >= one.a && p < one.b) p = one.a > a[axis] ? one.a - 1 : one.b;
        else if (p >= two.a && p < two.b) p = two.a - 1;
        return p - a[axis] - (p >= one.b ? one.size() : 0) - (p >= two.b ? two.size() : 0);
    }
};

// Memory straight from the system, and back to it at once: malloc would keep pieces of this size for itself.
struct Buffer {
    float* data = nullptr;
    size_t bytes = 0;
    Buffer() = default;
    Buffer(const Buffer&) = delete;
    Buffer(Buffer&& other) noexcept : data(std::exchange(other.data, nullptr)), bytes(other.bytes) {}
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { if (data) munmap(data, bytes); }
    void allocate(size_t floats) {  // zeros
        bytes = std::max<size_t>(1, floats) * sizeof(float);
        void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) throw std::bad_alloc();
        data = static_cast<float*>(p);
    }
};

// Whether the system gives memory in pages so large that what is never written becomes memory with its neighbours.
static bool huge_pages() {
    static const bool always = [] {
        char text[64] = {};
        std::FILE* file = std::fopen("/sys/kernel/mm/transparent_hugepage/enabled", "r");
        if (!file) return false;
        const size_t read = std::fread(text, 1, sizeof text - 1, file);
        std::fclose(file);
        return read > 0 && std::strstr(text, "[always]") != nullptr;
    }();
    return always;
}

struct Planes {
    Box box;                // what is computed
    int origin[2];          // row and column of the first stored voxel
    int rows, pad;          // rows that the next layer looks at; zeros before and after a row
    int first[2];           // of those rows, and of the next layer's columns, among what is stored
    int stored;             // rows
    int slots, depth;       // planes kept; planes of the whole volume
    int channels;
    int64_t stride, channel_stride;  // floats from row to row, and from channel to channel within a row
    std::vector<Range> before[2], after[2];  // rows, and columns, of the gaps that the next layer looks at
    Buffer kept;            // the slots, where they are its own
    float* memory = nullptr;
    std::vector<int> slot;  // of each plane that is computed, where several layers share their slots; else they go round
    std::vector<bool> fresh;  // whether its slot was never used before
    int64_t plane_floats() const {  // with room for what whole vectors and pairs read past the last row
        return stored * stride + round_up(3 * pad + 2 * LANES, 16);
    }

    // Room for `slots_` planes of what `next` looks at; zero outside the volume, where nothing is ever written.
    void prepare(int channels_, int slots_, const Box& box_, const Box& next, int dilation, const int* shape) {
        channels = channels_, slots = slots_, box = box_, depth = shape[0];
        pad = round_up(dilation, LANES);
        origin[0] = next.a[1] - dilation, origin[1] = next.a[2] - pad;
        rows = stored = next.b[1] - next.a[1] + 2 * dilation;
        first[0] = 0, first[1] = pad;
        const bool alone = box.a[2] < next.a[2] || box.b[2] > next.b[2];  // else the zeros right of a row are also
        // those left of the next. An odd number of cache lines, so that channels do not collide.
        channel_stride = (round_up(round_up(next.b[2] - next.a[2], LANES) + (alone ? 2 : 1) * pad, 16) / 16 | 1) * 16;
        stride = channels * channel_stride;
        for (int axis = 1; axis < 3; ++axis)
            for (const Range& read : next.computed(axis))
                for (const bool high : {false, true}) {
                    const Range& gap = high ? box.high[axis] : box.low[axis];
                    const Range part{std::max(gap.a, read.a - dilation), std::min(gap.b, read.b + dilation)};
                    if (read.size() && part.size()) (high ? after : before)[axis - 1].push_back(part);
                }
    }
    int64_t touched() const {  // floats: rows of zeros around the volume, and in gaps, are never written
        if (huge_pages()) return slots * plane_floats();
        int written = box.size(1), runs = 3;  // of rows, each of which ends within a page
        for (const auto& ranges : {before[0], after[0]})
            for (const Range& range : ranges) written += range.size(), ++runs;
        return slots * (int64_t(written) * stride + 3 * pad + 4 * 16 + (runs > 3 ? runs * 1024 : 0));
    }
    float* plane(int p) const {  // null outside the volume
        if (p < 0 || p >= depth) return nullptr;
        const int number = box.number(0, p);
        return memory + (slot.empty() ? number % slots : slot[number]) * plane_floats();
    }
    // Ask for the pages of plane p's rows where it is the first in its slot, the part-th of `parts`: in one call, which costs the
    // system a third less than meeting them one by one (measured). The rows of a gap may never be needed.
    void ask_for_pages(int p, int part, int parts) const {
#if defined(MADV_POPULATE_WRITE)  // where the system does not know it, nothing happens
        const int number = box.number(0, p);
        if (slot.empty() ? number >= slots : !fresh[number]) return;
        constexpr uintptr_t PAGE = 4096;
        const Range written = box.middle(1);
        auto start_of = [&](int k) {
            const int row = written.a + int(int64_t(written.size()) * k / parts) - origin[0];
            return (reinterpret_cast<uintptr_t>(plane(p) + row * stride) + PAGE - 1) / PAGE * PAGE;
        };
        if (start_of(part + 1) > start_of(part))
            madvise(reinterpret_cast<void*>(start_of(part)), start_of(part + 1) - start_of(part), MADV_POPULATE_WRITE);
#endif
    }
    // Columns `from` to `until` of a row have been written, in all channels: copy what is beside a gap into the gap.
    void fill_gaps(int p, int row, int from, int until) const {
        const bool first_row = !before[0].empty() && row == box.low[1].b, last_row = !after[0].empty() && row == box.high[1].a - 1;
        const bool first = !before[1].empty() && from == box.low[2].b, last = !after[1].empty() && until == box.high[2].a;
        if (!(first_row || last_row || first || last)) return;
        auto copy_rows = [&](float* of_row, int at, int end) {
            for (const bool high : {false, true})
                if (high ? last_row : first_row)
                    for (const Range& rows : (high ? after : before)[0])
                        for (int r = rows.a; r < rows.b; ++r)
                            std::memcpy(of_row + int64_t(r - row) * stride + at, of_row + at, (end - at) * sizeof(float));
        };
        float* of_row = plane(p) + int64_t(row - origin[0]) * stride - origin[1];
        for (int c = 0; c < channels; ++c, of_row += channel_stride) {
            copy_rows(of_row, from, until);
            for (const bool high : {false, true})
                if (high ? last : first)
                    for (const Range& columns : (high ? after : before)[1]) {
                        std::fill(of_row + columns.a, of_row + columns.b, of_row[high ? until - 1 : from]);
                        copy_rows(of_row, columns.a, columns.b);
                    }
        }
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

// work(t, barrier) in as many threads as the system gives, up to `threads`; none begins before their number is known.
template <class Work>
static void in_threads(int threads, Work work) {
    Barrier barrier;
    std::atomic<bool> go{false};
    std::vector<std::thread> others;
    others.reserve(threads);
    try {
        for (int t = 1; t < threads; ++t)
            others.emplace_back([&, t] {
                while (!go.load(std::memory_order_acquire)) std::this_thread::yield();
                work(t, barrier);
            });
    } catch (const std::exception&) {  // a limit on threads or on memory: fewer do it
    }
    barrier.total = int(others.size()) + 1;
    go.store(true, std::memory_order_release);
    work(0, barrier);
    for (auto& other : others) other.join();
}

struct alignas(64) Counter {  // of the pieces of work that have been taken
    std::atomic<int> taken{0};
    int next() { return taken.fetch_add(1, std::memory_order_relaxed); }
    void reset() { taken.store(0, std::memory_order_relaxed); }
};

struct Scratch {
    Buffer transformed, columns, products, features, logits;
    std::vector<const float*> rows;
};

// ---------------------------------------------------------------- F(4, 3)

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

// ---------------------------------------------------------------- a column of layers

struct Step { int layer, plane; bool pair; };  // one plane of a layer (-1: the input), or two that lie d apart

struct Piece {  // of a step's work
    int first, present;     // the first of its rows, which lie d apart, and how many there are (up to four)
    int from, count, wide;  // columns, and their number rounded up to whole vectors
    float* to[8];           // where channel 0 of each row goes; rows 4 to 7 are the second plane's
    int64_t to_stride;      // from channel to channel
};

enum Output { FEATURES = 0, LOGITS = 1, PROBABILITIES = 2, LABELS = 3 };

struct Column {
    std::vector<Convolution*> layers;
    std::vector<Box> boxes;  // boxes[0] the input, boxes[l + 1] what layers[l] computes
    std::vector<Planes> planes;
    Buffer pool;               // slots that layers share
    int pooled = 0;            // how many there are
    int64_t pool_touched = 0;  // how many floats of them become memory
    int shape[3];
    const float* volume;
    const float *head_weight = nullptr, *head_bias = nullptr;
    int classes = 0, output = FEATURES, chunk = 0;
    void* out = nullptr;
    int out_shape[3], out_at[3];  // the array to write into, and where the box's first voxel lies in it
    std::vector<float> zeros;
    std::vector<Step> steps;

    ~Column() { for (auto* layer : layers) delete layer; }

    int width(int layer) const {  // of the widest part
        int widest = 0;
        for (const Range& part : boxes[layer + 1].computed(2)) widest = std::max(widest, part.size());
        return widest;
    }
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
            typedef uint8_t bytes __attribute__((vector_size(LANES)));
            for (int x = 0; x < wide; x += LANES) {
                vec top = load(logits + x);
                ivec best = {};
                for (int k = 1; k < classes; ++k) {
                    const vec y = load(logits + int64_t(k) * chunk + x);
                    const ivec higher = y > top;
                    best = higher ? ivec{} + k : best, top = choose(higher, y, top);
                }
                const bytes found = __builtin_convertvector(best, bytes);
                std::memcpy(to + x, &found, std::min(LANES, count - x));
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

    // What a level computes, in order, and how many of its planes are then complete. Level 0 is the input.
    // Planes go in pairs that lie d apart, block by block of 2d; what is left over at the end goes alone.
    struct Unit { Step step; int complete; };
    std::vector<Unit> units(int level) const {
        const bool pair = level > 0 && layers[level - 1]->pair;
        const int d = pair ? layers[level - 1]->dilation : 1;
        std::vector<Unit> found;
        for (const Range& part : boxes[level].computed(0))
            for (int block = part.a; block < part.b; block += 2 * d) {
                const int length = std::min(2 * d, part.b - block), count = pair ? std::min(d, length) : length;
                for (int k = 0; k < count; ++k)
                    found.push_back({{level - 1, block + k, pair && k + d < length}, boxes[level].number(0, (k + 1 < count ? block + k + 1 : block + length) - 1) + 1});
            }
        return found;
    }

    // The order in which all is computed.
    std::vector<Step> schedule() const {
        std::vector<Step> steps;
        std::vector<std::vector<Unit>> waiting;
        std::vector<size_t> next(boxes.size());
        for (size_t level = 0; level < boxes.size(); ++level) waiting.push_back(units(int(level)));
        auto advance = [&](auto&& self, int level, int until) -> void {
            const Box& box = boxes[level];  // what is read up to `until` may be a copy of what comes after
            const int last = std::min(until, box.b[0]) - 1;
            until = box.number(0, last) + 1;
            while (next[level] < waiting[level].size() && (next[level] ? waiting[level][next[level] - 1].complete : 0) < until) {
                const Step step = waiting[level][next[level]].step;
                if (level > 0) {
                    const int d = layers[level - 1]->dilation;
                    self(self, level - 1, step.plane + (step.pair ? 2 : 1) * d + 1);
                }
                steps.push_back(step);
                ++next[level];
            }
        };
        advance(advance, int(boxes.size()) - 1, boxes.back().b[0]);
        return steps;
    }

    // How many planes of each level are in use at once: from the lowest that is still to be read to the highest written.
    std::vector<int> slots_for(const std::vector<Step>& steps) const {
        std::vector<int> slots(layers.size(), 1);
        for (int level = 0; level < int(layers.size()); ++level) {
            const int d = layers[level]->dilation;
            const Box& box = boxes[level];
            std::vector<int> lowest(steps.size() + 1, box.size(0));  // that this step or a later one reads
            for (size_t i = steps.size(); i-- > 0;)
                lowest[i] = steps[i].layer == level ? std::min(lowest[i + 1], box.number(0, std::max(steps[i].plane - d, box.a[0])))
                                                    : lowest[i + 1];
            int highest = 0;
            for (size_t i = 0; i < steps.size(); ++i) {
                if (steps[i].layer == level - 1)
                    highest = std::max(highest, box.number(0, steps[i].plane + (steps[i].pair ? layers[level - 1]->dilation : 0)));
                slots[level] = std::max(slots[level], highest - lowest[i] + 1);
            }
        }
        return slots;
    }

    // Where each plane of the levels above the input goes: into the slot that was given back last, or else a new one (then
    // it is fresh). Returns how many slots there are.
    int share_out(std::vector<std::vector<int>>& slot, std::vector<std::vector<bool>>& fresh) const {
        const int levels = int(layers.size());
        std::vector<std::vector<int>> last(levels);  // step that reads a plane for the last time
        for (int l = 0; l < levels; ++l) {
            const int planes = boxes[l].size(0);
            last[l].assign(planes, -1), slot[l].assign(planes, 0), fresh[l].assign(planes, false);
        }
        auto planes_of = [&](const Step& step, auto use) {
            const int d = step.layer < 0 ? 0 : layers[step.layer]->dilation;
            for (int z = 0; z < (step.pair ? 2 : 1); ++z) use(step.plane + z * d, d);
        };
        for (size_t i = 0; i < steps.size(); ++i)
            if (const int l = steps[i].layer; l > 0)
                planes_of(steps[i], [&](int p, int d) {
                    for (int q = p - d; q <= p + d; q += d)
                        if (q >= boxes[l].a[0] && q < boxes[l].b[0]) last[l][q - boxes[l].a[0]] = int(i);
                });
        std::vector<std::vector<int>> given_back(steps.size());  // slots, filled in as they are given out
        std::vector<int> free;
        int slots = 0;
        for (size_t i = 0; i < steps.size(); ++i) {
            const int to = steps[i].layer + 1;
            if (to > 0 && to < levels)
                planes_of(steps[i], [&](int p, int) {
                    const int n = p - boxes[to].a[0];
                    fresh[to][n] = free.empty();
                    if (free.empty()) free.push_back(slots++);
                    slot[to][n] = free.back(), free.pop_back();
                    given_back[last[to][n] < 0 ? i : last[to][n]].push_back(slot[to][n]);  // what nobody reads, at once
                });
            free.insert(free.end(), given_back[i].begin(), given_back[i].end());
        }
        return slots;
    }

    // Let all layers share their slots, so that a plane goes where one was that has just been read for the last time: fewer
    // slots (MeshNet-26: 183 instead of 246, without pairs 122 instead of 128), and what is overwritten is still in the
    // cache. Not where there are gaps, whose values are to stay in their slots, nor where layers differ in their channels,
    // are fewer than three, or would take more memory together.
    void share_slots() {
        const int levels = int(layers.size());
        Planes one;  // what all have in common
        int columns[2] = {shape[2], 0}, read[2] = {shape[1], 0}, written[2] = {shape[1], 0};
        bool same = true;
        one.pad = 0;
        auto widen = [](int* range, int a, int b) { range[0] = std::min(range[0], a), range[1] = std::max(range[1], b); };
        int64_t apart = 0;
        for (int l = 0; l < levels; ++l) {
            for (const Box& box : {boxes[l], boxes[l + 1]})
                for (int axis = 0; axis < 3; ++axis) if (box.low[axis].size() || box.high[axis].size()) return;
            if (!l) continue;
            const Box &box = boxes[l], &next = boxes[l + 1];
            const int d = layers[l]->dilation;
            if (planes[l].channels != planes[1].channels) return;
            same = same && box.a[2] == next.a[2] && box.b[2] == next.b[2] && box.a[2] == boxes[1].a[2] && box.b[2] == boxes[1].b[2];
            widen(columns, next.a[2], next.b[2]);
            widen(read, next.a[1] - d, next.b[1] + d), widen(written, box.a[1], box.b[1]);
            one.pad = std::max(one.pad, planes[l].pad);
            apart += planes[l].touched();
        }
        if (levels < 3) return;
        one.origin[0] = read[0], one.origin[1] = columns[0] - one.pad, one.stored = read[1] - read[0];
        one.channel_stride = (round_up(round_up(columns[1] - columns[0], LANES) + (same ? 1 : 2) * one.pad, 16) / 16 | 1) * 16;
        one.stride = planes[1].channels * one.channel_stride;

        std::vector<std::vector<int>> slot(levels);
        std::vector<std::vector<bool>> fresh(levels);
        const int slots = share_out(slot, fresh);
        const int rows = huge_pages() ? one.stored : written[1] - written[0];
        const int64_t together = slots * (int64_t(rows) * one.stride + 3 * one.pad + 64);
        if (together >= apart) return;
        pooled = slots, pool_touched = together;
        for (int l = 1; l < levels; ++l) {
            Planes& to = planes[l];
            to.first[0] = boxes[l + 1].a[1] - layers[l]->dilation - one.origin[0], to.first[1] = boxes[l + 1].a[2] - one.origin[1];
            to.origin[0] = one.origin[0], to.origin[1] = one.origin[1], to.pad = one.pad, to.stored = one.stored;
            to.stride = one.stride, to.channel_stride = one.channel_stride;
            to.slot = std::move(slot[l]), to.fresh = std::move(fresh[l]);
        }
    }

    void scratch_floats(size_t part[5]) const {
        part[0] = part[1] = part[2] = part[4] = 1;
        for (auto* layer : layers) {
            const size_t row = round_up(chunk + 2 * layer->dilation, LANES);
            part[0] = std::max(part[0], TAPS * size_t(layer->pair ? PAIR_TAPS : 3) * layer->in * row);
            if (layer->columns) part[4] = std::max(part[4], PAIR_TAPS * size_t(3) * layer->in * chunk / 2);  // planes left over go alone
            part[1] = std::max(part[1], TAPS * size_t(layer->pair ? PAIR_TAPS : 1) * layer->blocks * layer->block * chunk);
        }
        part[2] = size_t(8) * layers.back()->out * chunk;
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
        int fits = 640 * 1024 / (4 * TAPS * PAIR_TAPS * most) - 2 * reach;
        fits = std::max(4 * LANES, fits / (4 * LANES) * 4 * LANES);
        int pieces = std::max(1, (widest + fits - 1) / fits);
        chunk = round_up((widest + pieces - 1) / pieces, 4 * LANES);
    }

    int64_t bytes(int threads) const {
        size_t part[5];
        scratch_floats(part);
        int64_t floats = threads * int64_t(part[0] + part[1] + part[2] + part[3] + part[4]);
        for (auto& one : planes) floats += one.slot.empty() ? one.touched() : 0;
        floats += pool_touched;
        for (auto* layer : layers) floats += layer->direct.size() + layer->winograd.size() + layer->paired.size();
        return floats * int64_t(sizeof(float));
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

// ---------------------------------------------------------------- the gradient of the weights

static inline vec load_part(const float* p, int count) {
    if (count >= LANES) return load(p);
    vec v = {};
    if (count > 0) std::memcpy(&v, p, count * sizeof(float));
    return v;
}

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

// ---------------------------------------------------------------- norm and activation of a training step

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

// ---------------------------------------------------------------- what Python calls

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

}
