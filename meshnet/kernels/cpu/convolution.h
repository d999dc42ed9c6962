// One layer's weights, packed for each way to compute it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "inner.h"

constexpr int COLUMNS_FROM = 8;  // input channels from which columns are computed in pairs: with fewer, memory decides

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
