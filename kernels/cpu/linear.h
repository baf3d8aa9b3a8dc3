// The call of linear.cpp, as product.py and layers.cpp lay it out.

#pragma once

#include <cstdint>

extern "C" {

struct Operand {  // (rows, depth) with unit stride along one of them
    const void* data;
    int64_t row, column, bfloat16;
};

struct Product {  // C (m, n) = A (m, depth) B (n, depth)^T + bias (n,), or GELU of it
    Operand a, b;
    const float* bias;  // null = none
    void* out;          // unit stride along n
    int64_t out_row, out_bfloat16;
    int64_t m, n, depth;
    int64_t rounds;  // the operands are rounded to bfloat16
    int64_t gelu;
    int64_t threads;
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel; null = one thread
};
static_assert(sizeof(Product) == 19 * 8, "product.py lays it out");

int matrix_product(const Product*);
// Some products of the same A, rounded or not: (m, depth) is theirs in common, and none of them is empty.
int matrix_products(const Product*, int64_t count);
}
