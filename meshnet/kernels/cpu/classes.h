// The 1x1x1 layer to the classes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "vectors.h"

enum Output { FEATURES = 0, LOGITS = 1, PROBABILITIES = 2, LABELS = 3 };

struct Classes {
    const float *weight, *bias;  // (classes, channels), (classes)
    int channels, classes, output;
    void* out;     // (classes, voxels) float, or (voxels) uint8 for LABELS
    int64_t step;  // voxels

    // `count` voxels of the features, which go to `at` and on. `logits` is room for (classes, count), each row rounded up
    // to whole vectors; rows of the features and of it lie `stride` and `room` floats apart.
    void classify(const float* features, int64_t stride, int count, float* logits, int64_t room, int64_t at) const {
        const int wide = round_up(count, LANES);
        for (int k = 0; k < classes; ++k)
            for (int x = 0; x < wide; x += LANES) {
                vec sum = spread(bias[k]);
                for (int c = 0; c < channels; ++c) sum += weight[k * channels + c] * load(features + c * stride + x);
                store(logits + k * room + x, sum);
            }
        if (output == LABELS) return highest(logits, room, count, static_cast<uint8_t*>(out) + at);
        float* to = static_cast<float*>(out) + at;
        for (int x = 0; x < wide; x += LANES) {
            if (output == PROBABILITIES) softmax(logits + x, room);
            for (int k = 0; k < classes; ++k)
                store_part(to + k * step + x, load(logits + k * room + x), count - x);
        }
    }
    void highest(const float* logits, int64_t room, int count, uint8_t* to) const {
        typedef uint8_t bytes __attribute__((vector_size(LANES)));
        for (int x = 0; x < count; x += LANES) {
            vec top = load(logits + x);
            ivec best = {};
            for (int k = 1; k < classes; ++k) {
                const vec y = load(logits + k * room + x);
                const ivec higher = y > top;
                best = higher ? ivec{} + k : best, top = choose(higher, y, top);
            }
            const bytes found = __builtin_convertvector(best, bytes);
            std::memcpy(to + x, &found, std::min(LANES, count - x));
        }
    }
    void softmax(float* logits, int64_t room) const {
        vec top = load(logits), sum = {};
        for (int k = 1; k < classes; ++k) {
            vec y = load(logits + k * room);
            top = choose(y > top, y, top);
        }
        for (int k = 0; k < classes; ++k) {
            vec e = exponential(load(logits + k * room) - top);
            store(logits + k * room, e);
            sum += e;
        }
        for (int k = 0; k < classes; ++k) store(logits + k * room, load(logits + k * room) / sum);
    }
};
