// The most that a core's multiply-add instructions, or its matrix unit, do on numbers in registers: what bounds any matrix
// product.

#include "product.h"

#if defined(__AMX_BF16__) && defined(__linux__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr int TOTALS = MAX_VECTORS * MAX_ROWS;  // enough to hide an instruction's latency, few enough for the registers
volatile float sink;

template <class Step>
void repeat(int64_t times, const Step& step) {
    Vec total[TOTALS];
    for (int i = 0; i < TOTALS; ++i) total[i] = splat(1.0f + static_cast<float>(i));
    for (int64_t k = 0; k < times; ++k)
#pragma GCC unroll 32  // or the numbers stay in memory
        for (int i = 0; i < TOTALS; ++i) total[i] = step(total[i]);
    for (int i = 1; i < TOTALS; ++i) total[0] += total[i];
    sink = sum(total[0]);
}

// With the matrix unit, 16 x 32 by 32 x 16 numbers at a time; 0 where there is none, or the system does not let us.
int64_t peak_of_tiles(int64_t times) {
#if defined(__AMX_BF16__) && defined(__linux__)
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM
    if (syscall(SYS_arch_prctl, REQUEST, TILE_DATA)) return 0;
    struct {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shape;
    static_assert(sizeof shape == 64, "as the instruction reads it");
    _tile_loadconfig(&shape);
    for (int64_t k = 0; k < times; ++k) {  // six sums of the same two operands, all of them 0
        _tile_dpbf16ps(0, 6, 7);
        _tile_dpbf16ps(1, 6, 7);
        _tile_dpbf16ps(2, 6, 7);
        _tile_dpbf16ps(3, 6, 7);
        _tile_dpbf16ps(4, 6, 7);
        _tile_dpbf16ps(5, 6, 7);
    }
    _tile_release();
    return times * 6 * 16 * 16 * 32 * 2;
#else
    (void)times;
    return 0;
#endif
}

}  // namespace

// Returns how many multiplications and additions it has done.
extern "C" int64_t peak(int64_t times, int bfloat16) {
    volatile float factor = 0.5f;
    const Vec x = splat(factor), y = splat(factor);
    if (const int64_t done = bfloat16 ? peak_of_tiles(times) : 0) return done;
    if (bfloat16)
        repeat(times, [&](Vec total) { return add_products<BFloat16>(total, x, y); });
    else
        repeat(times, [&](Vec total) { return total * x + y; });
    return times * TOTALS * LANES * 2 * (bfloat16 ? TERMS<BFloat16> : 1);
}
