// A column of layers planned: the order of its steps, the slots of its planes, the bytes that takes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "convolution.h"
#include "planes.h"

struct Step { int layer, plane; bool pair; };  // one plane of a layer (-1: the input), or two that lie d apart

// Which steps a column of layers takes, in which order, and the room that its planes need meanwhile.
struct Plan {
    std::vector<Convolution*> layers;
    std::vector<Box> boxes;  // boxes[0] the input, boxes[l + 1] what layers[l] computes
    std::vector<Planes> planes;
    int pooled = 0;            // slots that layers share
    int64_t pool_touched = 0;  // how many floats of them become memory
    int shape[3];
    int classes = 0, chunk = 0;
    std::vector<Step> steps;

    ~Plan() { for (auto* layer : layers) delete layer; }

    int width(int layer) const {  // of the widest part
        int widest = 0;
        for (const Range& part : boxes[layer + 1].computed(2)) widest = std::max(widest, part.size());
        return widest;
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
};
