// 3x3 convolutions of stride 1 with zero padding, by Winograd's minimal filtering F(4x4, 3x3): 36 multiplications where the
// definition takes 144 (A. Lavin and S. Gray, Fast algorithms for convolutional neural networks, CVPR 2016), and the
// instance norm and leaky ReLU that follow. Images are (rows, columns, channels), channels a multiple of lanes().
//
// A tile is 6x6 pixels of the input, for 4x4 of the output. Tiles are transformed some at a time, so that what becomes of them
// stays in the cache; each of the 36 places of the transform is then a matrix product over channels. One thread computes all of
// an image: others may compute others.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#ifdef __AVX512F__
constexpr int LANES = 16, ROWS = 12;  // 24 sums, two factors and a broadcast: of 32 registers
#else
constexpr int LANES = 8, ROWS = 6;  // half of all that
#endif
constexpr int PLACES = 36;
constexpr int64_t CACHE = LANES * 8 * 1024;  // floats of what becomes of some tiles: half of a second-level cache of 1 MB or 512 KB
constexpr int64_t FEWEST = 64;         // tiles at a time where there are many channels, whose weights do not fit in any case

typedef float vec __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));
typedef float half __attribute__((vector_size(LANES / 2 * sizeof(float)), aligned(sizeof(float)), may_alias));
typedef double wide __attribute__((vector_size(LANES / 2 * sizeof(double)), aligned(sizeof(double)), may_alias));

static inline vec load(const float* at) { return *reinterpret_cast<const vec*>(at); }
static inline void store(float* at, vec value) { *reinterpret_cast<vec*>(at) = value; }

// The polynomials are interpolated at 0, -A, A, -B, B and infinity. With these two the error is two thirds of that with 1 and 2.
constexpr float A = 0.70710678118654752f, B = 1.41421356237309505f, AA = 0.5f, BB = 2.0f;

static inline void into(const vec* d, vec* t, int to) {
    const vec d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3], d4 = d[4], d5 = d[5];
    const vec even_a = d4 - BB * d2, odd_a = A * (d3 - BB * d1), even_b = d4 - AA * d2, odd_b = B * (d3 - AA * d1);
    t[0] = d0 - (AA + BB) * d2 + d4;
    t[to] = even_a + odd_a;
    t[2 * to] = even_a - odd_a;
    t[3 * to] = even_b + odd_b;
    t[4 * to] = even_b - odd_b;
    t[5 * to] = d1 - (AA + BB) * d3 + d5;
}

static inline void back(const vec* m, vec* y, int to) {
    const vec sum_a = m[1] + m[2], difference_a = A * (m[1] - m[2]);
    const vec sum_b = m[3] + m[4], difference_b = B * (m[3] - m[4]);
    y[0] = m[0] + sum_a + sum_b;
    y[to] = difference_a + difference_b;
    y[2 * to] = AA * sum_a + BB * sum_b;
    y[3 * to] = AA * difference_a + BB * difference_b + m[5];
}

struct Image {
    int rows, columns, channels;
    int tiles_across() const { return (columns + 3) / 4; }
    int tiles() const { return (rows + 3) / 4 * tiles_across(); }
};

// One tile -> its 36 places, `apart` floats from each other.
template <bool inner>
static void transform_tile(const float* x, Image image, int top, int left, float* v, int64_t apart) {
    for (int c = 0; c < image.channels; c += LANES) {
        vec t[PLACES];
        for (int j = 0; j < 6; j++) {
            vec d[6];
            for (int i = 0; i < 6; i++) {
                const int row = top + i, column = left + j;
                const bool seen = inner || (row >= 0 && row < image.rows && column >= 0 && column < image.columns);
                d[i] = seen ? load(x + (int64_t(row) * image.columns + column) * image.channels + c) : vec{};
            }
            into(d, t + j, 6);
        }
        for (int i = 0; i < 6; i++) {
            vec d[6];
            into(t + 6 * i, d, 1);
            for (int j = 0; j < 6; j++) store(v + (6 * i + j) * apart + c, d[j]);
        }
    }
}

// Add to the moments of an image, the sums of its pixels and of their squares: in double, where no rounding adds up that counts.
static inline void accumulate(double* sums, double* squares, const float* sum, const float* deviation, double pixels) {
    const wide more = __builtin_convertvector(*reinterpret_cast<const half*>(sum), wide);
    *reinterpret_cast<wide*>(sums) += more;
    *reinterpret_cast<wide*>(squares) += __builtin_convertvector(*reinterpret_cast<const half*>(deviation), wide) + more * more / pixels;
}

// Back to the 4x4 pixels of a tile (fewer at the edge), and their share of the moments (2, channels) if wanted.
template <bool whole>
static void tile_back(
    const float* m, int64_t apart, const float* bias, Image image, int top, int left, float* y, double* moments
) {
    const int high = whole ? 4 : std::min(4, image.rows - top), across = whole ? 4 : std::min(4, image.columns - left);
    for (int c = 0; c < image.channels; c += LANES) {
        vec t[24], out[16], sum = {}, deviation = {};
        const vec add = load(bias + c);
        for (int j = 0; j < 6; j++) {
            vec d[6];
            for (int i = 0; i < 6; i++) d[i] = load(m + (6 * i + j) * apart + c);
            back(d, t + j, 6);
        }
        for (int i = 0; i < high; i++) {
            vec* row = out + 4 * i;
            back(t + 6 * i, row, 1);
            for (int j = 0; j < 4; j++) row[j] = j < across ? row[j] + add : vec{};
            for (int j = 0; j < across; j++) store(y + (int64_t(top + i) * image.columns + left + j) * image.channels + c, row[j]);
            sum += (row[0] + row[1]) + (row[2] + row[3]);
        }
        if (!moments) continue;
        const vec mean = sum / float(high * across);
        for (int i = 0; i < high; i++)
            for (int j = 0; j < across; j++) deviation += (out[4 * i + j] - mean) * (out[4 * i + j] - mean);
        float both[2 * LANES];
        store(both, sum);
        store(both + LANES, deviation);
        for (int part = 0; part < LANES; part += LANES / 2)
            accumulate(moments + c + part, moments + image.channels + c + part, both + part, both + LANES + part, high * across);
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

// Some tiles on their way through the convolution.
struct Part {
    const Image source, result;
    const float *const x, *const u, *const bias;
    float* const y;
    double* const moments;
    const int first, count;
    const int64_t apart_v, apart_m;
    float *v, *m;

    // `some` is the room for tiles: a little more than they take, lest the 36 places fall on the same lines of the cache.
    Part(Image source, Image result, const float* x, const float* u, const float* bias, float* y, double* moments, int first, int count, int some)
        : source(source), result(result), x(x), u(u), bias(bias), y(y), moments(moments), first(first), count(count),
          apart_v(int64_t(some) * source.channels + LANES), apart_m(int64_t(some) * result.channels + LANES) {
        static thread_local std::vector<float> space;
        if (int64_t(space.size()) < PLACES * (apart_v + apart_m)) space.resize(PLACES * (apart_v + apart_m));
        v = space.data();
        m = v + PLACES * apart_v;
    }

    void transform() const {
        for (int t = 0; t < count; t++) {
            const int top = (first + t) / source.tiles_across() * 4 - 1, left = (first + t) % source.tiles_across() * 4 - 1;
            const bool inner = top >= 0 && left >= 0 && top + 6 <= source.rows && left + 6 <= source.columns;
            (inner ? transform_tile<true> : transform_tile<false>)(x, source, top, left, v + int64_t(t) * source.channels, apart_v);
        }
    }

    void multiply() const {
        const int in = source.channels, out = result.channels;
        for (int place = 0; place < PLACES; place++) {
            const float *weights = u + int64_t(place) * in * out, *tiles = v + place * apart_v;
            float* products = m + place * apart_m;
            int o = 0;
            for (; o + 2 * LANES <= out; o += 2 * LANES) panel<2>(count, tiles, in, weights + int64_t(o) * in, products + o, out);
            if (o < out) panel<1>(count, tiles, in, weights + int64_t(o) * in, products + o, out);
        }
    }

    void transform_back() const {
        for (int t = 0; t < count; t++) {
            const int top = (first + t) / result.tiles_across() * 4, left = (first + t) % result.tiles_across() * 4;
            const bool whole = top + 4 <= result.rows && left + 4 <= result.columns;
            (whole ? tile_back<true> : tile_back<false>)(m + int64_t(t) * result.channels, apart_m, bias, result, top, left, y, moments);
        }
    }
};

extern "C" {

int lanes() { return LANES; }

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

// One image, with the weights as above; `moments` (2, out) as those of image_moments, or null.
void winograd_convolve(
    const float* x, int rows, int columns, int in, const float* u, const float* bias, int out, float* y, double* moments
) {
    const Image source{rows, columns, in}, result{rows, columns, out};
    const int tiles = source.tiles();
    const int most = std::max(FEWEST, CACHE / (PLACES * int64_t(in + out))), shares = (tiles + most - 1) / most;
    const int some = ((tiles + shares - 1) / shares + ROWS - 1) / ROWS * ROWS, parts = (tiles + some - 1) / some;
    if (moments) std::fill(moments, moments + 2 * out, 0.0);
    for (int number = 0; number < parts; number++) {
        const Part part(source, result, x, u, bias, y, moments, number * some, std::min(some, tiles - number * some), some);
        part.transform();
        part.multiply();
        part.transform_back();
    }
}

// The moments (2, channels) of an image: for each channel the sum of its pixels and the sum of their squares.
void image_moments(const float* y, int rows, int columns, int channels, double* moments) {
    double *sums = moments, *squares = moments + channels;
    std::fill(sums, squares + channels, 0.0);
    for (int row = 0; row < rows; row++) {
        const float none[LANES] = {}, *at = y + int64_t(row) * columns * channels;
        for (int column = 0; column < columns; column++, at += channels)
            for (int c = 0; c < channels; c += LANES / 2) accumulate(sums + c, squares + c, at + c, none, 1);
    }
}

// Instance norm (biased variance) and leaky ReLU, in place.
void normalize(float* y, int rows, int columns, int channels, const double* moments, float eps, float slope) {
    std::vector<float> mean(channels), scale(channels), offset(channels);
    for (int c = 0; c < channels; c++) {
        const double pixels = double(rows) * columns, exact = moments[c] / pixels;
        const double factor = 1 / std::sqrt(std::max(moments[channels + c] / pixels - exact * exact, 0.0) + eps);
        mean[c] = float(exact);
        scale[c] = float(factor);
        offset[c] = float((mean[c] - exact) * factor);
    }
    for (int row = 0; row < rows; row++) {
        float* at = y + int64_t(row) * columns * channels;
        for (int column = 0; column < columns; column++, at += channels)
            for (int c = 0; c < channels; c += LANES) {
                const vec d = (load(at + c) - load(mean.data() + c)) * load(scale.data() + c) + load(offset.data() + c);
                store(at + c, d > 0 ? d : slope * d);
            }
    }
}
}
