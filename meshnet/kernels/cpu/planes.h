// The planes that a layer keeps for the next one, and the memory they lie in.
#pragma once

#if defined(__wasm__)
#include "pages.h"
#else
#include <sys/mman.h>
#endif

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "vectors.h"

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
#if defined(__wasm__)
    ~Buffer() { if (data) page_runs.free(data); }
    void allocate(size_t floats) {
        bytes = std::max<size_t>(1, floats) * sizeof(float);
        data = static_cast<float*>(page_runs.allocate(bytes));
        if (!data) __builtin_trap();  // no exceptions there
    }
#else
    ~Buffer() { if (data) munmap(data, bytes); }
    void allocate(size_t floats) {  // zeros
        bytes = std::max<size_t>(1, floats) * sizeof(float);
        void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) throw std::bad_alloc();
        data = static_cast<float*>(p);
    }
#endif
};

// Whether the system gives memory in pages so large that what is never written becomes memory with its neighbours.
static bool huge_pages() {
#if defined(__wasm__)
    return true;  // there memory counts from the moment it is asked for
#else
    static const bool always = [] {
        char text[64] = {};
        std::FILE* file = std::fopen("/sys/kernel/mm/transparent_hugepage/enabled", "r");
        if (!file) return false;
        const size_t read = std::fread(text, 1, sizeof text - 1, file);
        std::fclose(file);
        return read > 0 && std::strstr(text, "[always]") != nullptr;
    }();
    return always;
#endif
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
