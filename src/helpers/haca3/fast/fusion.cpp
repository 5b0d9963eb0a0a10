// The 3x3x3 convolutions of HACA3's fusion net, one plane of a volume at a time: one thread computes all of a
// plane, others may compute others. Volumes are (planes, rows, columns, channels), with one voxel around them on
// every side; `x` and `y` point at the first channel of the first voxel of a plane that is not one of those. Each
// sum is that of the definition, in an order that is the same for all voxels.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

// Read and written at any address, hence memcpy: a template forgets what alignment its types were given.
typedef float float4 __attribute__((vector_size(16)));
typedef float float8 __attribute__((vector_size(32)));
typedef float float16 __attribute__((vector_size(64)));
typedef double double4 __attribute__((vector_size(32)));

template <typename V, typename T>
static inline V load(const T* at) {
    V value;
    std::memcpy(&value, at, sizeof(V));
    return value;
}

template <typename V, typename T>
static inline void store(T* at, V value) { std::memcpy(at, &value, sizeof(V)); }

#ifdef __AVX512F__
constexpr int WIDEST = 16, SUMS = 24;  // sums that are held in registers at a time, of 32
#else
constexpr int WIDEST = 8, SUMS = 12;  // of 16
#endif

struct Plane {
    int64_t row, plane;  // floats from a row, and from a plane, to the next
};

// COUNT voxels of a row. u: for each of the 27 neighbours and each channel in, the weights of all channels out.
template <int IN, int PIXEL, int OUT, int LANES, int COUNT>
static void voxels(
    const float* x, Plane apart, const float* u, const float* bias, float* y, int64_t pixel, float slope
) {
    using vec = std::conditional_t<LANES == 16, float16, float8>;
    constexpr int P = OUT / LANES;
    vec sum[COUNT][P];
    for (int r = 0; r < COUNT; r++)
        for (int p = 0; p < P; p++) sum[r][p] = load<vec>(bias + p * LANES);
    for (int i = -1; i <= 1; i++)
        for (int j = -1; j <= 1; j++) {
            const float* at = x + i * apart.plane + j * apart.row - PIXEL;
            for (int k = 0; k < 3; k++, at += PIXEL)
                for (int c = 0; c < IN; c++, u += OUT)
#pragma GCC unroll 24
                    for (int r = 0; r < COUNT; r++)
#pragma GCC unroll 2
                        for (int p = 0; p < P; p++) sum[r][p] += at[r * PIXEL + c] * load<vec>(u + p * LANES);
        }
#pragma GCC unroll 24
    for (int r = 0; r < COUNT; r++)
#pragma GCC unroll 2
        for (int p = 0; p < P; p++) {
            const vec value = sum[r][p];
            store<vec>(y + r * pixel + p * LANES, value > 0 ? value : slope * value);
        }
}

// Add the sums of the channels, and of their squares, of a row: in double, where no rounding adds up that counts.
template <int OUT>
static void add_moments(const float* y, int columns, int64_t pixel, double* moments) {
    for (int c = 0; c < OUT; c += 4) {
        double4 sum = load<double4>(moments + c), square = load<double4>(moments + OUT + c);
        for (int column = 0; column < columns; column++) {
            const double4 value = __builtin_convertvector(load<float4>(y + column * pixel + c), double4);
            sum += value;
            square += value * value;
        }
        store(moments + c, sum);
        store(moments + OUT + c, square);
    }
}

template <int IN, int PIXEL, int OUT>
static void convolve(
    const float* x, Plane apart, const float* u, const float* bias, float* y, int64_t row, int64_t pixel, int rows,
    int columns, float slope, double* moments
) {
    constexpr int LANES = std::min(OUT, WIDEST), COUNT = SUMS * LANES / OUT;
    if (moments) std::fill(moments, moments + 2 * OUT, 0.0);
    for (int j = 0; j < rows; j++, x += apart.row, y += row) {
        if (columns < COUNT)
            for (int k = 0; k < columns; k++)
                voxels<IN, PIXEL, OUT, LANES, 1>(x + k * PIXEL, apart, u, bias, y + k * pixel, pixel, slope);
        else
            for (int k = 0, at; k < columns; k += COUNT) {
                at = std::min(k, columns - COUNT);  // the last ones overlap, with the same numbers
                voxels<IN, PIXEL, OUT, LANES, COUNT>(x + at * PIXEL, apart, u, bias, y + at * pixel, pixel, slope);
            }
        if (moments) add_moments<OUT>(y, columns, pixel, moments);
    }
}

extern "C" {

// A plane through one of the first three layers, told by its channels in; `y` has `pixel` floats from a voxel to
// the next. Negative sums are multiplied by `slope`. Moments (2, out): for each channel the sum over the plane and
// the sum of squares, or null.
void convolve_plane(
    const float* x, int in, const float* u, const float* bias, float* y, int pixel, int rows, int columns, float slope,
    double* moments
) {
    const int64_t row = int64_t(columns + 2) * pixel;
    const auto apart = [=](int64_t each) { return Plane{(columns + 2) * each, (rows + 2) * (columns + 2) * each}; };
    if (in == 3) convolve<3, 19, 8>(x, apart(19), u, bias, y, row, pixel, rows, columns, slope, moments);
    if (in == 8) convolve<8, 8, 16>(x, apart(8), u, bias, y, row, pixel, rows, columns, slope, moments);
    if (in == 19) convolve<19, 19, 16>(x, apart(19), u, bias, y, row, pixel, rows, columns, slope, moments);
}

// The last layer, 16 channels in and one out; `y` is a plane of the result, without anything around it.
void convolve_plane_to_one(const float* x, const float* u, float bias, float* y, int rows, int columns) {
    constexpr int IN = 16;
    const int64_t row = int64_t(columns + 2) * IN, plane = (rows + 2) * row;
    for (int j = 0; j < rows; j++, x += row, y += columns)
        for (int column = 0; column < columns; column++) {
            float8 low = {}, high = {};
            const float* weight = u;
            for (int tap = 0; tap < 27; tap++, weight += IN) {
                const float* at =
                    x + (tap / 9 - 1) * plane + (tap / 3 % 3 - 1) * row + (column + tap % 3 - 1) * IN;
                low += load<float8>(at) * load<float8>(weight);
                high += load<float8>(at + 8) * load<float8>(weight + 8);
            }
            const float8 all = low + high;
            const float half = (all[0] + all[1]) + (all[2] + all[3]), rest = (all[4] + all[5]) + (all[6] + all[7]);
            y[column] = std::max(bias + (half + rest), 0.0f);
        }
}

// Instance norm, of which mean and factor are known for each channel, and leaky ReLU, of a plane in place.
void normalize_plane(
    float* y, int channels, int pixel, int rows, int columns, const float* mean, const float* factor, float slope
) {
    for (int j = 0; j < rows; j++)
        for (int column = 0; column < columns; column++) {
            float* at = y + (int64_t(j) * (columns + 2) + column) * pixel;
            for (int c = 0; c < channels; c += 8) {
                const float8 value = (load<float8>(at + c) - load<float8>(mean + c)) * load<float8>(factor + c);
                store<float8>(at + c, value > 0 ? value : slope * value);
            }
        }
}
}
