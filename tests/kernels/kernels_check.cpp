// Columns of layers on whole volumes and gradients of weights, by meshnet/kernels/kernels.cpp and by sums written out in double, in
// a program of its own, so that builds for other CPUs can be checked: ./kernels_check CASES prints the largest relative
// errors; exit code 1 above 2e-5.

#include "../../meshnet/kernels/kernels.cpp"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>

static std::mt19937 generator(1);
static int draw(int from, int to) { return std::uniform_int_distribution<int>(from, to)(generator); }
static std::vector<float> normal(size_t n) {
    std::normal_distribution<float> one;
    std::vector<float> values(n);
    for (float& value : values) value = one(generator);
    return values;
}

struct Volume {  // (channels, *shape), zero outside
    int channels, shape[3];
    std::vector<double> values;
    Volume(int channels, const int* s) : channels(channels), shape{s[0], s[1], s[2]}, values(size_t(channels) * s[0] * s[1] * s[2]) {}
    size_t at(int c, int x, int y, int z) const { return ((size_t(c) * shape[0] + x) * shape[1] + y) * shape[2] + z; }
    double read(int c, int x, int y, int z) const {
        const bool inside = x >= 0 && y >= 0 && z >= 0 && x < shape[0] && y < shape[1] && z < shape[2];
        return inside ? values[at(c, x, y, z)] : 0.0;
    }
    template <class Work>
    void each(Work work) {
        for (int c = 0; c < channels; ++c)
            for (int x = 0; x < shape[0]; ++x)
                for (int y = 0; y < shape[1]; ++y)
                    for (int z = 0; z < shape[2]; ++z) work(c, x, y, z);
    }
};

static double activated(double x, int kind) {
    switch (kind) {
        case RELU: return x > 0 ? x : 0;
        case ELU: return x > 0 ? x : std::expm1(x);
        case GELU: return x * (1 + std::erf(x / std::sqrt(2.0))) / 2;
        default: return x;
    }
}

static double largest(const std::vector<float>& found, const std::vector<double>& expected) {
    double difference = 0, size = 1e-30;
    for (size_t i = 0; i < found.size(); ++i) {
        if (!(std::abs(found[i]) < 1e30)) return 1e30;
        difference = std::max(difference, std::abs(found[i] - expected[i])), size = std::max(size, std::abs(expected[i]));
    }
    return difference / size;
}

// A random column on a random volume, computed whole.
static double check_column() {
    const int layers = draw(1, 4), shape[3] = {draw(1, 24), draw(1, 40), draw(1, 90)};
    std::vector<int> widths{draw(1, 3)}, dilations, activations, pairs;
    const int usual = draw(1, 27);
    for (int l = 0; l < layers; ++l) {
        widths.push_back(draw(0, 3) ? usual : draw(1, 27));
        dilations.push_back(1 << draw(0, 4)), activations.push_back(draw(0, 3)), pairs.push_back(widths[l] >= 3 && draw(0, 2));
    }
    std::vector<std::vector<float>> weights, biases;
    std::vector<const float*> of_weights, of_biases;
    const auto volume = normal(size_t(widths[0]) * shape[0] * shape[1] * shape[2]);
    Volume x(widths[0], shape);
    x.values.assign(volume.begin(), volume.end());
    for (int l = 0; l < layers; ++l) {
        weights.push_back(normal(size_t(widths[l]) * widths[l + 1] * 27)), biases.push_back(normal(widths[l + 1]));
        for (float& w : weights.back()) w /= std::sqrt(27.f * widths[l]);
        Volume y(widths[l + 1], shape);
        const int d = dilations[l];
        y.each([&](int o, int a, int b, int c) {
            double sum = biases[l][o];
            for (int i = 0; i < widths[l]; ++i)
                for (int k = 0; k < 27; ++k)
                    sum += double(weights[l][(size_t(o) * widths[l] + i) * 27 + k]) *
                           x.read(i, a + (k / 9 - 1) * d, b + (k / 3 % 3 - 1) * d, c + (k % 3 - 1) * d);
            y.values[y.at(o, a, b, c)] = activated(sum, activations[l]);
        });
        x = y;
    }
    for (int l = 0; l < layers; ++l) of_weights.push_back(weights[l].data()), of_biases.push_back(biases[l].data());
    std::vector<int> boxes, gaps;
    for (int l = 0; l <= layers; ++l)
        for (int n : shape) boxes.insert(boxes.end(), {0, n}), gaps.insert(gaps.end(), {0, 0, n, n});
    const int at[3] = {0, 0, 0};
    std::vector<float> out(x.values.size(), NAN);
    Request request{layers, widths.data(), dilations.data(), activations.data(), pairs.data(), of_weights.data(), of_biases.data(),
                    boxes.data(), gaps.data(), shape, volume.data(), nullptr, nullptr, 2, FEATURES, draw(1, 3), out.data(), shape, at};
    return meshnet_run(&request) ? 1e30 : largest(out, x.values);
}

// The gradient of one convolution's weights.
static double check_gradient() {
    const int in = draw(1, 9), out = draw(1, 9), d = 1 << draw(0, 3), shape[3] = {draw(1, 12), draw(1, 30), draw(1, 50)};
    const auto x = normal(size_t(in) * shape[0] * shape[1] * shape[2]), g = normal(size_t(out) * shape[0] * shape[1] * shape[2]);
    Volume input(in, shape), output(out, shape);
    input.values.assign(x.begin(), x.end()), output.values.assign(g.begin(), g.end());
    std::vector<double> expected(size_t(out) * in * 27);
    output.each([&](int o, int a, int b, int c) {
        for (int i = 0; i < in; ++i)
            for (int k = 0; k < 27; ++k)
                expected[(size_t(o) * in + i) * 27 + k] += output.values[output.at(o, a, b, c)] *
                    input.read(i, a + (k / 9 - 1) * d, b + (k / 3 % 3 - 1) * d, c + (k % 3 - 1) * d);
    });
    std::vector<float> found(expected.size(), NAN);
    return meshnet_weight_gradient(x.data(), g.data(), in, out, d, shape, found.data(), draw(1, 3)) ? 1e30 : largest(found, expected);
}

int main(int count, char** arguments) {
    double columns = 0, gradients = 0;
    for (int n = count > 1 ? std::atoi(arguments[1]) : 20; n > 0; --n)
        columns = std::max(columns, check_column()), gradients = std::max(gradients, check_gradient());
    std::printf("%d lanes: columns %.1e, gradients %.1e\n", LANES, columns, gradients);
    return columns < 2e-5 && gradients < 2e-5 ? 0 : 1;
}
