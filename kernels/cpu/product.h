// The matrix product C (M, N) = A (M, depth) B (N, depth)^T, in float32 or with operands rounded to bfloat16.
//
// A tile of C lies in registers: some rows of A, each number spread over a vector, times a panel of B, some vectors wide
// and packed so that it is read in order. The terms of a sum go by words of 4 bytes: one float, or two bfloat16 that
// follow each other, which CPUs with an instruction for them multiply and add together. All sums are float32. A sum's
// terms are added in an order that depends on the depth alone, in chains of DEPTH words at most: a sum of sums rounds
// less than one chain.

#pragma once

#include "common.h"

#include <type_traits>
#include <utility>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

template <class T>
constexpr int64_t TERMS = 4 / sizeof(T);  // of a word

template <class T>
inline Vec splat_word(const T* x) {
    int32_t word;
    std::memcpy(&word, x, sizeof word);
    return reinterpret_cast<Vec>(IntVec{} + word);
}

template <class T>
inline Vec add_products(Vec total, Vec x, Vec y) {
    if constexpr (TERMS<T> == 1) {
        return total + x * y;
    } else {
#if defined(__AVX512BF16__)
        return reinterpret_cast<Vec>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(total), reinterpret_cast<__m512bh>(x),
                                                      reinterpret_cast<__m512bh>(y)));
#else
        const Bits a = reinterpret_cast<Bits>(x), b = reinterpret_cast<Bits>(y);
        total += reinterpret_cast<Vec>(a << 16) * reinterpret_cast<Vec>(b << 16);
        return total + reinterpret_cast<Vec>(a & 0xffff0000u) * reinterpret_cast<Vec>(b & 0xffff0000u);
#endif
    }
}

// Each lane of both, rounded, as a word.
inline Vec words(Vec first, Vec second) {
    return reinterpret_cast<Vec>(rounded(first) >> 16 | (rounded(second) & 0xffff0000u));
}

// ------------------------------------------------------------------ tiles

constexpr int TILE_ROWS = 8;  // at most: addresses of more do not fit into the registers
constexpr int most_rows(int vectors) { return std::min(MAX_VECTORS * MAX_ROWS / vectors, TILE_ROWS); }

// C (ROWS, VECTORS x LANES) = start + A (ROWS, depth words) times a panel (depth words, VECTORS x LANES). `start`'s rows
// are start_row apart: C itself, or one row for all (0). FETCHES: what lies ahead of a row's words is prefetched.
template <class T, int ROWS, int VECTORS, bool FETCHES>
void tile(int64_t depth, const T* a, int64_t a_row, const float* panel, const float* start, int64_t start_row, float* c,
          int64_t c_row) {
    constexpr int64_t LINE = 16, AHEAD = 8 * LINE;  // words of a cache line
    Vec total[ROWS][VECTORS];
    for (int i = 0; i < ROWS; ++i)
        for (int j = 0; j < VECTORS; ++j) total[i][j] = Vec{};
    for (int64_t k = 0; k < depth;) {
        if (FETCHES)
            for (int i = 0; i < ROWS; ++i) __builtin_prefetch(a + i * a_row + AHEAD * TERMS<T>, 0, 2);
        for (const int64_t end = FETCHES ? std::min(k + LINE, depth) : depth; k < end; ++k) {
            Vec row[VECTORS];
            for (int j = 0; j < VECTORS; ++j) row[j] = load(panel + j * LANES);
            for (int i = 0; i < ROWS; ++i) {
                const Vec x = splat_word(a + i * a_row);
                for (int j = 0; j < VECTORS; ++j) total[i][j] = add_products<T>(total[i][j], x, row[j]);
            }
            a += TERMS<T>;
            panel += VECTORS * LANES;
        }
    }
    for (int i = 0; i < ROWS; ++i)
        for (int j = 0; j < VECTORS; ++j) {
            const int64_t at = j * LANES;
            store(c + i * c_row + at, load(start + i * start_row + at) + total[i][j]);
        }
}

template <class T>
using Tile = void (*)(int64_t, const T*, int64_t, const float*, const float*, int64_t, float*, int64_t);

template <class T, bool FETCHES, int VECTORS, int... ROWS>
Tile<T> tile_of(int64_t rows, std::integer_sequence<int, ROWS...>) {
    static constexpr Tile<T> tiles[] = {tile<T, ROWS + 1, VECTORS, FETCHES>...};
    return tiles[rows - 1];
}

template <class T, bool FETCHES>
Tile<T> tile_of(int64_t rows, int64_t vectors) {
    if constexpr (MAX_VECTORS == 4) {
        if (vectors == 4) return tile_of<T, FETCHES, 4>(rows, std::make_integer_sequence<int, most_rows(4)>());
        if (vectors == 3) return tile_of<T, FETCHES, 3>(rows, std::make_integer_sequence<int, most_rows(3)>());
    }
    if (vectors == 2) return tile_of<T, FETCHES, 2>(rows, std::make_integer_sequence<int, most_rows(2)>());
    return tile_of<T, FETCHES, 1>(rows, std::make_integer_sequence<int, most_rows(1)>());
}

// ------------------------------------------------------------------ words from memory

// LANES words from as many numbers in a row, n of them valid, the rest 0.
template <class T, class S>
inline Vec load_words(const S* x, int64_t n) {
    if constexpr (TERMS<T> == 1) {
        return load_some(x, n);
    } else if constexpr (std::is_same_v<S, BFloat16>) {
        float lanes[LANES] = {};
        std::memcpy(lanes, x, static_cast<size_t>(std::clamp<int64_t>(n, 0, 2 * LANES)) * sizeof(S));
        return load(lanes);
    } else {
        const Vec low = n > 0 ? load_some(x, n) : Vec{}, high = n > LANES ? load_some(x + LANES, n - LANES) : Vec{};
#if defined(__AVX512BF16__)
        return reinterpret_cast<Vec>(
            _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(high), reinterpret_cast<__m512>(low)));
#else
        BFloat16 both[2 * LANES];
        store_elements(both, low);
        store_elements(both + LANES, high);
        float lanes[LANES];
        std::memcpy(lanes, both, sizeof lanes);
        return load(lanes);
#endif
    }
}

// LANES words, each of the numbers at the same place of TERMS rows; n columns and some rows are valid, the rest 0.
template <class T, class S>
inline Vec load_across(const S* x, int64_t row, int64_t rows, int64_t n) {
    const Vec first = load_some(x, n);
    if constexpr (TERMS<T> == 1) return first;
    return words(first, rows > 1 ? load_some(x + row, n) : Vec{});
}

// Of two vectors each half is cut into parts of HALF lanes; the first's second parts change places with the second's
// first parts.
template <int HALF, int... L>
inline void exchange(Vec& x, Vec& y, std::integer_sequence<int, L...>) {
    const Vec a = x, b = y;
    x = __builtin_shufflevector(a, b, (L & HALF ? LANES + L - HALF : L)...);
    y = __builtin_shufflevector(a, b, (L & HALF ? LANES + L : L + HALF)...);
}

template <int HALF>
inline void exchange(Vec* v) {
    for (int i = 0; i < LANES; ++i)
        if (!(i & HALF)) exchange<HALF>(v[i], v[i + HALF], std::make_integer_sequence<int, LANES>());
    if constexpr (HALF > 1) exchange<HALF / 2>(v);
}

// (LANES, LANES) in place.
inline void transpose(Vec* v) { exchange<LANES / 2>(v); }

}  // namespace
