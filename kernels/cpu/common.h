// What the C++ of this folder shares: vectors and elementary functions, memory that a thread keeps, the parallel loop.
//
// No header of PyTorch, Python or OpenMP, so that one binary serves every version of them; library.py
// hands over the parallel loop of the OpenMP runtime PyTorch uses (a pool of our own would fight with that one for the
// cores).

#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

// What all threads took since the last count; what they merely keep from before it is nobody's.
inline std::atomic<int64_t> scratch_floats{0}, scratch_counts{0};

namespace {

// ------------------------------------------------------------------ vectors

#if defined(__AVX512F__)
constexpr int LANES = 16, MAX_VECTORS = 4;
#elif defined(__AVX__)
constexpr int LANES = 8, MAX_VECTORS = 2;
#elif defined(__ARM_NEON)
constexpr int LANES = 4, MAX_VECTORS = 4;
#else
constexpr int LANES = 4, MAX_VECTORS = 2;
#endif
constexpr int MAX_ROWS = 6;     // with MAX_VECTORS: as many accumulators as fit into the registers
constexpr int64_t DEPTH = 256;  // terms of a sum before it is added to a sum of sums, which rounds less

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef int32_t IntVec __attribute__((vector_size(LANES * 4)));
typedef float UnalignedVec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

inline Vec load(const float* x) { return *reinterpret_cast<const UnalignedVec*>(x); }
inline void store(float* x, Vec v) { *reinterpret_cast<UnalignedVec*>(x) = v; }
inline Vec splat(float x) { return x - Vec{}; }  // 0 + x would lose the sign of -0
inline IntVec before(int64_t n) {  // which lanes are below n
    IntVec lanes;
    for (int i = 0; i < LANES; ++i) lanes[i] = i;
    return lanes < static_cast<int32_t>(std::min<int64_t>(n, LANES));
}
inline Vec maximum(Vec x, Vec y) { return x > y ? x : y; }

template <class Op>
inline float reduce(Vec x, Op op) {
    float lanes[LANES];
    std::memcpy(lanes, &x, sizeof lanes);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] = op(lanes[i], lanes[i + half]);
    return lanes[0];
}
inline float sum(Vec x) {
    return reduce(x, [](float a, float b) { return a + b; });
}
inline float largest(Vec x) {
    return reduce(x, [](float a, float b) { return a > b ? a : b; });
}

// exp(x) for x <= 88; relative error below 2 units in the last place; 0 below -87; NaN stays NaN.
inline Vec exponential(Vec x) {
    const Vec low = splat(-87.0f), magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const Vec clamped = x < low ? low : x;
    const Vec shifted = clamped * 1.44269504088896341f + magic;
    const Vec n = shifted - magic;
    const Vec r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
    Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    const Vec scaled = reinterpret_cast<Vec>(reinterpret_cast<IntVec>(p) + (reinterpret_cast<IntVec>(shifted) << 23));
    const Vec result = x < low ? Vec{} : scaled;
    return x == x ? result : x;
}

inline Vec magnitude(Vec x) { return x < 0.0f ? -x : x; }

inline Vec sigmoid(Vec x) {
    const Vec e = exponential(-magnitude(x));
    return (x < 0.0f ? e : splat(1.0f)) / (1.0f + e);
}

inline Vec tanh(Vec x) {
    const Vec e = exponential(-2.0f * magnitude(x));
    const Vec wide = (1.0f - e) / (1.0f + e);
    const Vec y = x * x;  // near 0 the quotient cancels
    Vec p = y * -5.70498872745e-3f + 2.06390887954e-2f;
    p = p * y - 5.37397155531e-2f;
    p = p * y + 1.33314422036e-1f;
    p = p * y - 3.33332819422e-1f;
    return magnitude(x) < 0.625f ? p * y * x + x : (x < 0.0f ? -wide : wide);
}

// x (1 + erf(x / sqrt 2)) / 2. erf is a + a p(a^2) below 0.9375, 1 - exp(t q(t) - t) above, and 1 from 4 on; p and q are
// least squares, reweighted towards the minimax fit, that leave an error of erf of 1e-8 (1.6e-8 at 4) beside rounding.
inline Vec gelu(Vec x) {
    const Vec a = x * 0.70710678118654752f, t = magnitude(a), s = a * a;
    Vec q = t * 2.1291533e-4f - 3.2061816e-3f;
    q = q * t + 2.286198e-2f;
    q = q * t - 1.0521845e-1f;
    q = q * t - 6.3575107e-1f;
    q = q * t - 1.2850474e-1f;
    const Vec tail = t < 4.0f ? exponential(q * t - t) : Vec{};  // erfc of t
    Vec p = s * -5.7608465e-4f + 4.940426e-3f;
    p = p * s - 2.6722595e-2f;
    p = p * s + 1.12802066e-1f;
    p = p * s - 3.7612253e-1f;
    p = p * s + 1.2837905e-1f;
    const Vec near = 1.0f + (p * a + a), far = a < 0.0f ? tail : 2.0f - tail;
    return x * 0.5f * (t < 0.9375f ? near : far);
}

// ------------------------------------------------------------------ bfloat16

struct BFloat16 {
    uint16_t bits;
};

typedef uint32_t Bits __attribute__((vector_size(LANES * 4)));
typedef uint16_t HalfBits __attribute__((vector_size(LANES * 2)));

// Rounded to nearest, ties to even: the upper half of every lane; the lower half holds what is left over.
inline Bits rounded(Vec x) {
    const Bits bits = reinterpret_cast<Bits>(x);
    const Bits nan = bits | 0x400000u, number = bits + 0x7fffu + (bits >> 16 & 1u);
    return x == x ? number : nan;
}

inline float to_float(float x) { return x; }
inline float to_float(BFloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float y;
    std::memcpy(&y, &bits, sizeof y);
    return y;
}
inline void store_elements(float* x, Vec v) { store(x, v); }
inline void store_elements(BFloat16* x, Vec v) {
    const HalfBits bits = __builtin_convertvector(rounded(v) >> 16, HalfBits);
    std::memcpy(x, &bits, sizeof bits);
}
inline Vec load_elements(const float* x) { return load(x); }
inline Vec load_elements(const BFloat16* x) {
    HalfBits bits;
    std::memcpy(&bits, x, sizeof bits);
    return reinterpret_cast<Vec>(__builtin_convertvector(bits, Bits) << 16);
}

// n numbers, at most LANES; the rest 0.
template <class T>
inline Vec load_some(const T* x, int64_t n) {
    if (n >= LANES) return load_elements(x);
    T lanes[LANES] = {};
    std::memcpy(lanes, x, static_cast<size_t>(n) * sizeof(T));
    return load_elements(lanes);
}

template <class T>
inline void store_some(T* x, Vec v, int64_t n) {
    if (n >= LANES) return store_elements(x, v);
    T lanes[LANES];
    store_elements(lanes, v);
    std::memcpy(x, lanes, static_cast<size_t>(n) * sizeof(T));
}

inline int64_t multiple(int64_t n, int64_t of) { return (n + of - 1) / of * of; }
inline int64_t padded(int64_t n) { return multiple(n, LANES); }

// (rows, columns) -> (columns, rows padded), the rest 0.
inline void transpose(float* to, int64_t to_row, const float* from, int64_t from_row, int64_t rows, int64_t columns) {
    typedef float Four __attribute__((vector_size(16)));
    typedef float UnalignedFour __attribute__((vector_size(16), aligned(4), may_alias));
    const int64_t whole_rows = rows / 4 * 4, whole_columns = columns / 4 * 4;
    for (int64_t i = 0; i < whole_rows; i += 4)
        for (int64_t j = 0; j < whole_columns; j += 4) {
            const float* x = from + i * from_row + j;
            Four r[4];
            for (int l = 0; l < 4; ++l) r[l] = *reinterpret_cast<const UnalignedFour*>(x + l * from_row);
            const Four a = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5);
            const Four b = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
            const Four c = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
            const Four d = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
            float* y = to + j * to_row + i;
            *reinterpret_cast<UnalignedFour*>(y) = __builtin_shufflevector(a, c, 0, 1, 4, 5);
            *reinterpret_cast<UnalignedFour*>(y + to_row) = __builtin_shufflevector(a, c, 2, 3, 6, 7);
            *reinterpret_cast<UnalignedFour*>(y + 2 * to_row) = __builtin_shufflevector(b, d, 0, 1, 4, 5);
            *reinterpret_cast<UnalignedFour*>(y + 3 * to_row) = __builtin_shufflevector(b, d, 2, 3, 6, 7);
        }
    for (int64_t j = 0; j < columns; ++j) {
        for (int64_t i = j < whole_columns ? whole_rows : 0; i < rows; ++i) to[j * to_row + i] = from[i * from_row + j];
        for (int64_t i = rows; i < to_row; ++i) to[j * to_row + i] = 0;
    }
}

// ------------------------------------------------------------------ memory and threads

enum Status : int { DONE, BAD_CU_SEQLENS, OUT_OF_MEMORY };

// Memory that a thread keeps between calls: pages need to be touched for the first time once only.
class Scratch {
  public:
    ~Scratch() { release_above(0); }
    float* take(int64_t floats, std::atomic<int>& status) {
        if (counted_ != scratch_counts) {
            counted_ = scratch_counts;
            taken_ = 0;
        }
        if (floats > taken_) {
            scratch_floats += floats - taken_;
            taken_ = floats;
        }
        if (floats > size_) {
            release_above(0);
            void* memory = nullptr;
            if (posix_memalign(&memory, 64, static_cast<size_t>(floats) * sizeof(float))) memory = nullptr;
            data_ = static_cast<float*>(memory);
            if (data_ == nullptr) {
                status = OUT_OF_MEMORY;
                return nullptr;
            }
            size_ = floats;
        }
        return data_;
    }
    void release_above(int64_t floats) {
        if (size_ <= floats) return;
        std::free(data_);
        data_ = nullptr;
        size_ = 0;
    }

  private:
    float* data_ = nullptr;
    int64_t size_ = 0, taken_ = 0, counted_ = -1;
};

// A pair of each source file: a caller's memory survives its calls into another file.
thread_local Scratch thread_scratch, call_scratch;
constexpr int64_t MOST_KEPT = 4 << 20;  // 16 MiB

// How many of the threads to use, at least one, where there is work for so many that it is worth waking them up.
inline int64_t threads_for(int64_t threads, int64_t worth) { return std::max<int64_t>(1, std::min(threads, worth)); }

// body(task) for every task, each once, on whichever thread is free. `call` says how many threads there are and what
// starts them: GOMP_parallel, or null = one thread.
template <class Call, class Body>
void for_each(const Call& call, int64_t tasks, int64_t at_once, const Body& body) {
    struct Loop {
        const Body& body;
        int64_t tasks, at_once;
        std::atomic<int64_t> next;
    } loop{body, tasks, at_once, {0}};
    const auto run = [](void* pointer) {
        Loop& loop = *static_cast<Loop*>(pointer);
        for (int64_t first; (first = loop.next.fetch_add(loop.at_once)) < loop.tasks;)
            for (int64_t i = first; i < std::min(first + loop.at_once, loop.tasks); ++i) loop.body(i);
    };
    const int64_t threads = std::min(call.threads, (tasks + at_once - 1) / at_once);
    if (threads > 1 && call.parallel != nullptr)
        call.parallel(run, &loop, static_cast<unsigned>(threads), 0);
    else
        run(&loop);
}

}  // namespace
