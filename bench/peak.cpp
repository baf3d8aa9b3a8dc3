// The most that a core's multiply-add instructions do on numbers in registers: what bounds any matrix product.

#include "product.h"

namespace {

constexpr int TOTALS = 4 * MAX_ROWS;  // enough to hide an instruction's latency, few enough for the registers
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

}  // namespace

// Returns how many multiplications and additions it has done.
extern "C" int64_t peak(int64_t times, int bfloat16) {
    volatile float factor = 0.5f;
    const Vec x = splat(factor), y = splat(factor);
    if (bfloat16)
        repeat(times, [&](Vec total) { return add_products<BFloat16>(total, x, y); });
    else
        repeat(times, [&](Vec total) { return total * x + y; });
    return times * TOTALS * LANES * 2 * (bfloat16 ? TERMS<BFloat16> : 1);
}
