// Threads that meet at a barrier, and counters of the work they take from each other.
#pragma once

#include <atomic>
#include <exception>
#include <vector>

#if defined(__wasm__)  // in a web page: tells how far it is

extern "C" __attribute__((import_module("env"), import_name("progress"))) void meshnet_progress(int done, int total);

#if defined(__wasm_atomics__)  // web workers on shared memory, which wait in meshnet_help (page/helper.js)

static inline void wait_while(std::atomic<int>& place, int value) {
    for (int spins = 0; place.load(std::memory_order_acquire) == value; ++spins)
        if (spins > 4000) __builtin_wasm_memory_atomic_wait32(reinterpret_cast<int*>(&place), value, -1);
}
static inline void wake(std::atomic<int>& place) { __builtin_wasm_memory_atomic_notify(reinterpret_cast<int*>(&place), -1); }

struct Barrier {
    std::atomic<int> waiting{0}, round{0};
    int total = 1;
    void wait() {
        const int now = round.load(std::memory_order_acquire);
        if (waiting.fetch_add(1, std::memory_order_acq_rel) + 1 < total) return wait_while(round, now);
        waiting.store(0, std::memory_order_relaxed);
        round.store(now + 1, std::memory_order_release);
        wake(round);
    }
};

struct Team {
    std::atomic<int> round{0}, left{0};
    void (*call)(void*, int, Barrier&);
    void* work;
    Barrier* barrier;
};
static Team team;

// What a worker runs for good, as thread `t` of each round.
extern "C" void meshnet_help(int t) {
    for (int seen = 0;; ++seen) {
        wait_while(team.round, seen);
        team.call(team.work, t, *team.barrier);
        if (team.left.fetch_sub(1, std::memory_order_acq_rel) == 1) wake(team.left);
    }
}

// work(t, barrier) in `threads` threads: 1, or all that wait in meshnet_help and this one.
template <class Work>
static void in_threads(int threads, Work work) {
    Barrier barrier;
    barrier.total = threads;
    if (threads > 1) {
        team.call = [](void* of, int t, Barrier& at) { (*static_cast<Work*>(of))(t, at); };
        team.work = &work, team.barrier = &barrier;
        team.left.store(threads - 1, std::memory_order_relaxed);
        team.round.fetch_add(1, std::memory_order_acq_rel);
        wake(team.round);
    }
    work(0, barrier);
    for (int left; threads > 1 && (left = team.left.load(std::memory_order_acquire)) > 0;) wait_while(team.left, left);
}

#else  // one thread

struct Barrier {
    int total = 1;
    void wait() {}
};

template <class Work>
static void in_threads(int, Work work) {
    Barrier barrier;
    work(0, barrier);
}

#endif

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
