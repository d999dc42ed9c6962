// Large pieces of memory in a web page. The allocator of its C library rounds large sizes up to powers of two, so that up to
// twice the memory that was planned would be taken; here they are whole pages of 64 kB, which are used again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

constexpr size_t PAGE_BYTES = 1 << 16;

struct PageRun {  // pages from `at`, used or free
    size_t at, pages;
    bool used;
};

struct PageRuns {  // in the order of their addresses; other memory may lie between them
    PageRun runs[512];
    int count = 0;

    void insert(int place, PageRun run) {
        std::memmove(runs + place + 1, runs + place, (count++ - place) * sizeof(PageRun));
        runs[place] = run;
    }
    void remove(int place) { std::memmove(runs + place, runs + place + 1, (--count - place) * sizeof(PageRun)); }

    void* allocate(size_t bytes) {  // zeros; null where memory ends
        const size_t need = (bytes + PAGE_BYTES - 1) / PAGE_BYTES;
        int best = -1;
        for (int i = 0; i < count; ++i)
            if (!runs[i].used && runs[i].pages >= need && (best < 0 || runs[i].pages < runs[best].pages)) best = i;
        if (count + 1 >= int(sizeof runs / sizeof *runs)) return nullptr;
        if (best >= 0) {
            if (runs[best].pages > need) insert(best + 1, {runs[best].at + need, runs[best].pages - need, false});
            runs[best] = {runs[best].at, need, true};
            return std::memset(reinterpret_cast<void*>(runs[best].at * PAGE_BYTES), 0, bytes);
        }
        const bool at_end = count && !runs[count - 1].used && runs[count - 1].at + runs[count - 1].pages == __builtin_wasm_memory_size(0);
        const size_t more = need - (at_end ? runs[count - 1].pages : 0), grown = __builtin_wasm_memory_grow(0, more);
        if (grown == SIZE_MAX) return nullptr;
        if (at_end) {
            runs[count - 1].pages = need, runs[count - 1].used = true;
            return std::memset(reinterpret_cast<void*>(runs[count - 1].at * PAGE_BYTES), 0, (need - more) * PAGE_BYTES);
        }
        runs[count++] = {grown, need, true};
        return reinterpret_cast<void*>(grown * PAGE_BYTES);
    }

    void free(void* pointer) {
        const size_t at = reinterpret_cast<size_t>(pointer) / PAGE_BYTES;
        auto join = [&](int i) {  // with the run behind it
            if (i < 0 || i + 1 >= count || runs[i].used || runs[i + 1].used || runs[i].at + runs[i].pages != runs[i + 1].at) return;
            runs[i].pages += runs[i + 1].pages;
            remove(i + 1);
        };
        for (int i = 0; i < count; ++i)
            if (runs[i].at == at && runs[i].used) {
                runs[i].used = false;
                join(i), join(i - 1);
                return;
            }
    }
};
static PageRuns page_runs;

// For JavaScript, which puts volumes and results there.
extern "C" void* meshnet_allocate(size_t bytes) { return page_runs.allocate(bytes); }
extern "C" void meshnet_free(void* pointer) { page_runs.free(pointer); }
