// 3x3 convolutions of stride 1 with zero padding, by Winograd's minimal filtering F(4x4, 3x3): 36 multiplications where the
// definition takes 144 (A. Lavin and S. Gray, Fast algorithms for convolutional neural networks, CVPR 2016), and the
// instance norm and leaky ReLU that follow. Images are (rows, columns, channels), channels a multiple of 16.
//
// A tile is 6x6 pixels of the input, for 4x4 of the output. Tiles are transformed some at a time, so that what becomes of them
// stays in the cache; each of the 36 places of the transform is then a matrix product over channels. No sum depends on the
// number of threads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#ifdef __AVX512F__
constexpr int LANES = 16, ROWS = 12;  // 24 sums, two factors and a broadcast: of 32 registers
#else
constexpr int LANES = 8, ROWS = 6;
#endif
constexpr int PLACES = 36;
constexpr int64_t CACHE = 128 * 1024;  // floats of what becomes of some tiles: half of a second-level cache of 1 MB
constexpr int64_t FEWEST = 64;         // tiles at a time where there are many channels, whose weights do not fit in any case

typedef float vec __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));
typedef float half __attribute__((vector_size(LANES / 2 * sizeof(float)), aligned(sizeof(float)), may_alias));
typedef double wide __attribute__((vector_size(LANES / 2 * sizeof(double)), aligned(sizeof(double)), may_alias));

static inline vec load(const float* at) { return *reinterpret_cast<const vec*>(at); }
static inline void store(float* at, vec value) { *reinterpret_cast<vec*>(at) = value; }

// The polynomials are interpolated at 0, -A, A, -B, B and infinity. With these two the error is two thirds of that with 1 and 2.
constexpr float A = 0.70710678118654752f, B = 1.41421356237309505f, AA = 0.5f, BB = 2.0f;

static inline void into(const vec* d, int step, vec* t, int to) {
    const vec d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
    const vec even_a = d4 - BB * d2, odd_a = A * (d3 - BB * d1), even_b = d4 - AA * d2, odd_b = B * (d3 - AA * d1);
    t[0] = d0 - (AA + BB) * d2 + d4;
    t[to] = even_a + odd_a;
    t[2 * to] = even_a - odd_a;
    t[3 * to] = even_b + odd_b;
    t[4 * to] = even_b - odd_b;
    t[5 * to] = d1 - (AA + BB) * d3 + d5;
}

static inline void back(const vec* m, int step, vec* y, int to) {
    const vec sum_a = m[step] + m[2 * step], difference_a = A * (m[step] - m[2 * step]);
    const vec sum_b = m[3 * step] + m[4 * step], difference_b = B * (m[3 * step] - m[4 * step]);
    y[0] = m[0] + sum_a + sum_b;
    y[to] = difference_a + difference_b;
    y[2 * to] = AA * sum_a + BB * sum_b;
    y[3 * to] = AA * difference_a + BB * difference_b + m[5 * step];
}

struct Image {
    int rows, columns, channels;
    int tiles_across() const { return (columns + 3) / 4; }
    int tiles() const { return (rows + 3) / 4 * tiles_across(); }
};

// One tile -> its 36 places, `apart` floats from each other.
static void transform_tile(const float* x, Image image, int tile, float* v, int64_t apart) {
    const int top = tile / image.tiles_across() * 4 - 1, left = tile % image.tiles_across() * 4 - 1;
    const bool inner = top >= 0 && left >= 0 && top + 6 <= image.rows && left + 6 <= image.columns;
    for (int c = 0; c < image.channels; c += LANES) {
        vec d[PLACES], t[PLACES];
        for (int i = 0; i < 6; i++)
            for (int j = 0; j < 6; j++) {
                const int row = top + i, column = left + j;
                const bool seen = inner || (row >= 0 && row < image.rows && column >= 0 && column < image.columns);
                d[6 * i + j] = seen ? load(x + (int64_t(row) * image.columns + column) * image.channels + c) : vec{};
            }
        for (int j = 0; j < 6; j++) into(d + j, 6, t + j, 6);
        for (int i = 0; i < 6; i++) into(t + 6 * i, 1, d + 6 * i, 1);
        for (int place = 0; place < PLACES; place++) store(v + place * apart + c, d[place]);
    }
}

static void transform_back(const float* m, int64_t apart, const float* bias, Image image, int tile, float* y) {
    const int top = tile / image.tiles_across() * 4, left = tile % image.tiles_across() * 4;
    const int high = std::min(4, image.rows - top), wide = std::min(4, image.columns - left);
    for (int c = 0; c < image.channels; c += LANES) {
        vec d[PLACES], t[24], out[16];
        for (int place = 0; place < PLACES; place++) d[place] = load(m + place * apart + c);
        for (int j = 0; j < 6; j++) back(d + j, 6, t + j, 6);
        for (int i = 0; i < 4; i++) back(t + 6 * i, 1, out + 4 * i, 1);
        const vec add = load(bias + c);
        for (int i = 0; i < high; i++)
            for (int j = 0; j < wide; j++)
                store(y + (int64_t(top + i) * image.columns + left + j) * image.channels + c, out[4 * i + j] + add);
    }
}

// (R, inner) times (inner, P vectors), R and P small enough to sum in registers.
template <int R, int P>
static void product(const float* v, int inner, const float* u, float* m, int64_t outer) {
    vec sum[R][P] = {};
    for (int c = 0; c < inner; c++, u += P * LANES)
#pragma GCC unroll 16
        for (int r = 0; r < R; r++)
#pragma GCC unroll 2
            for (int p = 0; p < P; p++) sum[r][p] += v[int64_t(r) * inner + c] * load(u + p * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int p = 0; p < P; p++) store(m + r * outer + p * LANES, sum[r][p]);
}

template <int R, int P>
static void remainder(int rows, const float* v, int inner, const float* u, float* m, int64_t outer) {
    if (rows == R) return product<R, P>(v, inner, u, m, outer);
    if constexpr (R > 1) remainder<R - 1, P>(rows, v, inner, u, m, outer);
}

template <int P>
static void panel(int rows, const float* v, int inner, const float* u, float* m, int64_t outer) {
    for (; rows >= ROWS; rows -= ROWS, v += int64_t(ROWS) * inner, m += ROWS * outer) product<ROWS, P>(v, inner, u, m, outer);
    if (rows) remainder<ROWS - 1, P>(rows, v, inner, u, m, outer);
}

extern "C" {

// Weights (out, in, 3, 3) -> transformed, for each place in panels of two vectors of output channels: 36 * in * out floats.
void winograd_weights(const float* weight, int in, int out, float* u) {
    const double a = AA, b = BB, root_a = std::sqrt(a), root_b = std::sqrt(b);
    const double by_a = 1 / (2 * a * (a - b)), by_b = 1 / (2 * b * (b - a));
    const double g[6][3] = {{1, 0, 0}, {by_a, by_a * root_a, by_a * a}, {by_a, -by_a * root_a, by_a * a},
                            {by_b, by_b * root_b, by_b * b}, {by_b, -by_b * root_b, by_b * b}, {0, 0, 1}};
    for (int place = 0; place < PLACES; place++)
        for (int first = 0; first < out; first += 2 * LANES) {
            const int width = std::min(2 * LANES, out - first);
            for (int c = 0; c < in; c++)
                for (int o = first; o < first + width; o++) {
                    double sum = 0;
                    for (int i = 0; i < 3; i++)
                        for (int j = 0; j < 3; j++) sum += g[place / 6][i] * g[place % 6][j] * weight[(int64_t(o) * in + c) * 9 + 3 * i + j];
                    *u++ = float(sum);
                }
        }
}

void winograd_convolve(const float* x, int rows, int columns, int in, const float* u, const float* bias, int out, float* y, int threads) {
    const Image source{rows, columns, in}, result{rows, columns, out};
    const int tiles = source.tiles();
    const int most = std::max(FEWEST, CACHE / (PLACES * int64_t(in + out))), shares = (tiles + most - 1) / most;
    const int some = ((tiles + shares - 1) / shares + ROWS - 1) / ROWS * ROWS, parts = (tiles + some - 1) / some;
    // A little more than what the tiles take, lest the 36 places fall on the same lines of the cache.
    const int64_t apart_v = int64_t(some) * in + LANES, apart_m = int64_t(some) * out + LANES;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int part = 0; part < parts; part++) {
        static thread_local std::vector<float> space;
        if (int64_t(space.size()) < PLACES * (apart_v + apart_m)) space.resize(PLACES * (apart_v + apart_m));
        float *v = space.data(), *m = v + PLACES * apart_v;
        const int first = part * some, count = std::min(some, tiles - first);
        for (int t = 0; t < count; t++) transform_tile(x, source, first + t, v + int64_t(t) * in, apart_v);
        for (int place = 0; place < PLACES; place++) {
            const float* weights = u + int64_t(place) * in * out;
            int o = 0;
            for (; o + 2 * LANES <= out; o += 2 * LANES) panel<2>(count, v + place * apart_v, in, weights + int64_t(o) * in, m + place * apart_m + o, out);
            if (o < out) panel<1>(count, v + place * apart_v, in, weights + int64_t(o) * in, m + place * apart_m + o, out);
        }
        for (int t = 0; t < count; t++) transform_back(m + int64_t(t) * out, apart_m, bias, result, first + t, y);
    }
}

// Instance norm (biased variance) and leaky ReLU, in place.
void normalize(float* y, int rows, int columns, int channels, float eps, float slope, int threads) {
    // Deviations from the first pixel, so that nothing cancels where an image is constant; in double, since the rounding of a row
    // in which the same is added again and again would add up: that cost 14 dB.
    std::vector<float> shift(y, y + channels), scale(channels), offset(channels);
    std::vector<double> sums(int64_t(rows) * 2 * channels);
#pragma omp parallel for num_threads(threads)
    for (int row = 0; row < rows; row++)
        for (int c = 0; c < channels; c += LANES / 2) {
            wide sum = {}, square = {};
            const float* at = y + int64_t(row) * columns * channels + c;
            const half first = *reinterpret_cast<const half*>(shift.data() + c);
            for (int column = 0; column < columns; column++, at += channels) {
                const wide d = __builtin_convertvector(*reinterpret_cast<const half*>(at) - first, wide);
                sum += d;
                square += d * d;
            }
            *reinterpret_cast<wide*>(sums.data() + int64_t(2 * row) * channels + c) = sum;
            *reinterpret_cast<wide*>(sums.data() + int64_t(2 * row + 1) * channels + c) = square;
        }
    for (int c = 0; c < channels; c++) {
        double sum = 0, square = 0;
        for (int row = 0; row < rows; row++) sum += sums[int64_t(2 * row) * channels + c], square += sums[int64_t(2 * row + 1) * channels + c];
        const double pixels = double(rows) * columns, m = sum / pixels;
        const double factor = 1 / std::sqrt(std::max(square / pixels - m * m, 0.0) + eps);
        scale[c] = float(factor);
        offset[c] = float(-m * factor);
    }
#pragma omp parallel for num_threads(threads)
    for (int row = 0; row < rows; row++) {
        float* at = y + int64_t(row) * columns * channels;
        for (int column = 0; column < columns; column++, at += channels)
            for (int c = 0; c < channels; c += LANES) {
                const vec d = (load(at + c) - load(shift.data() + c)) * load(scale.data() + c) + load(offset.data() + c);
                store(at + c, d > 0 ? d : slope * d);
            }
    }
}
}
