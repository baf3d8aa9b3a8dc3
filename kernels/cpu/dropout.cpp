// Dropout on the CPU, in float32 or bfloat16: y = x * mask / (1 - p). The mask is a function of seed and position alone,
// so that the backward pass draws it again instead of keeping it.

#include "common.h"

extern "C" {

struct Dropout {
    const void* x;
    void* y;
    int64_t count, bfloat16;
    int64_t seed;
    int64_t dropped;  // p = dropped / 2^16
    int64_t threads;
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel; null = one thread
};
static_assert(sizeof(Dropout) == 8 * 8, "dropout.py lays it out");
}

namespace {

// 16 counters give as many numbers of 8 x 16 bits: number j's bits of place i are those of element 16 i + j.
constexpr int64_t COUNTERS = 16, CHUNK = 8 * COUNTERS;

template <class T>
void drop(const Dropout& call, int64_t chunk, const T* x, T* y) {
    const float scale = 65536.0f / static_cast<float>(65536 - call.dropped);
    for (int64_t first = 0; first < COUNTERS; first += LANES) {
        uint32_t c[4][LANES];
        for (int l = 0; l < LANES; ++l) {
            const uint64_t counter = static_cast<uint64_t>(chunk * COUNTERS + first + l);
            c[0][l] = static_cast<uint32_t>(counter);
            c[1][l] = static_cast<uint32_t>(counter >> 32);
            c[2][l] = c[3][l] = 0;
        }
        philox(static_cast<uint64_t>(call.seed), c);
        for (int place = 0; place < 8; ++place) {
            IntVec bits;
            std::memcpy(&bits, c[place / 2], sizeof bits);
            bits = (place % 2 ? bits >> 16 : bits) & 0xffff;
            const Vec factor = bits >= static_cast<int32_t>(call.dropped) ? splat(scale) : Vec{};
            const int64_t at = place * COUNTERS + first;
            store_elements(y + at, load_elements(x + at) * factor);
        }
    }
}

template <class T>
int run(Dropout call) {
    constexpr int64_t TASK = 128;  // chunks: worth waking a thread up for
    const T* x = static_cast<const T*>(call.x);
    T* y = static_cast<T*>(call.y);
    const int64_t chunks = call.count / CHUNK, rest = call.count % CHUNK;
    for_each(call, (chunks + TASK - 1) / TASK, 1, [&](int64_t task) {
        for (int64_t chunk = task * TASK; chunk < std::min(chunks, (task + 1) * TASK); ++chunk)
            drop(call, chunk, x + chunk * CHUNK, y + chunk * CHUNK);
    });
    if (rest) {
        T part[CHUNK] = {};
        std::memcpy(part, x + chunks * CHUNK, static_cast<size_t>(rest) * sizeof(T));
        drop(call, chunks, part, part);
        std::memcpy(y + chunks * CHUNK, part, static_cast<size_t>(rest) * sizeof(T));
    }
    return DONE;
}

}  // namespace

extern "C" {

int dropout(const Dropout* call) { return call->bfloat16 ? run<BFloat16>(*call) : run<float>(*call); }
}
