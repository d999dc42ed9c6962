// Threads that meet at a barrier, and counters of the work they take from each other.
#pragma once

#include <atomic>
#include <exception>
#include <vector>

#if defined(__wasm__)  // in a web page: one thread, which tells how far it is

extern "C" __attribute__((import_module("env"), import_name("progress"))) void meshnet_progress(int done, int total);

struct Barrier {
    int total = 1;
    void wait() {}
};

template <class Work>
static void in_threads(int, Work work) {
    Barrier barrier;
    work(0, barrier);
}

#else

#include <thread>

static inline void meshnet_progress(int, int) {}

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

#endif

struct alignas(64) Counter {  // of the pieces of work that have been taken
    std::atomic<int> taken{0};
    int next() { return taken.fetch_add(1, std::memory_order_relaxed); }
    void reset() { taken.store(0, std::memory_order_relaxed); }
};
