// The call of cms_attention.cpp, as attention_call.py and layers.cpp lay it out.

#pragma once

#include <cstdint>

extern "C" {

struct Modality {  // one of Eq. 1-4; size 0 = absent
    const void* token_gate;
    int64_t token_gate_stride;
    const void* frame_gate;
    int64_t frame_gate_stride;
    const void* frames;
    int64_t frames_stride;
    const void* weight;
    int64_t weight_stride;
    const int32_t* cu_seqlens;
    int64_t rows, size;
    void *d_token_gate, *d_frame_gate;
    void *d_frames, *d_weight;  // null = not wanted
};

struct Heads {  // (T, H, d_h) with unit stride along d_h
    const void* data;
    int64_t row, head;
};

struct Call {
    Heads query, key, value, d_out;
    const int32_t* cu_seqlens;
    int64_t batch, rows, heads, head_size;
    double scale;
    int64_t activation, bfloat16;
    const int64_t* seed;  // null = no dropout
    double dropout_p;
    void *out, *d_query, *d_key, *d_value;  // contiguous
    float *mean, *shift, *softmax;          // (T, K), (H, T, d_h padded) or null = not kept, (H, T, 2)
    int64_t threads;
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel; null = one thread
    Modality modalities[2];
};
static_assert(sizeof(Call) == 61 * 8, "attention_call.py lays it out");

int cms_attention_forward(const Call*);
int cms_attention_backward(const Call*);
}
