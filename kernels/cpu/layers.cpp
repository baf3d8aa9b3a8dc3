// Layers of BERT with CMS attention (Eq. 1-8) without gradients: what their modules would call one after another, in one
// call. Between operators that Python runs, waiting threads go to sleep. Linear layers may round their operands to
// bfloat16; all else is in float32.

#include "cms_attention.h"
#include "common.h"
#include "linear.h"

extern "C" {

struct Dense {  // x W^T + b; W (d_out, d_in), rows one after the other, float32 or bfloat16
    const void* weight;
    const float* bias;
};

struct Norm {
    const float *weight, *bias;
    double epsilon;
};

struct Shift {  // W_g (1, D + d_m) and b of Eq. 1 or 2, W_v or W_a of Eq. 3 (D, d_m); null = the layer has none
    const float *gate, *bias, *weight;
};

struct Layer {
    int64_t inner;  // size of the feed-forward part
    Dense query, key, value, attention_output, intermediate, output;
    Norm attention_norm, output_norm;
    Shift shifts[2];
};
static_assert(sizeof(Layer) == (1 + 12 + 6 + 6) * 8, "ops/bert_layers/cpu.py lays it out");

struct LayersCall {  // `count` of Layer follow it in memory
    const float* x;  // (T, D), rows one after the other
    float* out;      // likewise
    int64_t count;
    int64_t rounds, bfloat16;  // operands of linear layers are rounded to bfloat16; their weights are in it
    Call attention;  // its tensors of tokens, its gates and its weights are filled in here
};
static_assert(sizeof(LayersCall) == (5 + 61) * 8, "ops/bert_layers/cpu.py lays it out");
}

namespace {

class Run {
  public:
    // x and out may be the same: out is written after x was read for the last time.
    Run(const Layer& layer, const LayersCall& call, const float* x, float* out)
        : layer_(layer),
          call_(call.attention),
          x_(x),
          out_(out),
          rounds_(call.rounds),
          bfloat16_(call.bfloat16),
          rows_(call_.rows),
          width_(call_.heads * call_.head_size),
          status_(DONE) {
        for (int m = 0; m < 2; ++m) {
            Modality& modality = call_.modalities[m];
            if (!layer.shifts[m].weight) modality = {};
            modality.weight = layer.shifts[m].weight;
            modality.weight_stride = modality.size;
        }
    }

    int run() {
        int64_t frames = 0, columns = 0;
        for (const Modality& modality : call_.modalities) {
            frames += modality.rows;
            columns += multiple(modality.size, 16);
        }
        const int64_t tile = rows_ * width_, per_row = 5 * width_ + layer_.inner + columns + 2 * call_.heads + 2;
        float* q = call_scratch.take(rows_ * per_row + frames, status_);
        if (status_ != DONE) return status_;
        float *k = q + tile, *v = k + tile, *z = v + tile, *middle = z + tile, *inner = middle + tile;
        float *mean = inner + rows_ * layer_.inner, *softmax = mean + rows_ * columns;
        float* gates = softmax + 2 * rows_ * call_.heads;

        const Product projections[] = {product(layer_.query, x_, width_, width_, q),
                                       product(layer_.key, x_, width_, width_, k),
                                       product(layer_.value, x_, width_, width_, v)};
        note(matrix_products(projections, 3));
        for (int m = 0; m < 2; ++m)
            if (call_.modalities[m].size) gates = gate(layer_.shifts[m], call_.modalities[m], gates);
        call_.query = {q, width_, call_.head_size};
        call_.key = {k, width_, call_.head_size};
        call_.value = {v, width_, call_.head_size};
        call_.out = z;
        call_.mean = mean;
        call_.softmax = softmax;
        note(cms_attention_forward(&call_));
        if (status_ != DONE) return status_;

        float* projected = q;  // read for the last time
        linear(layer_.attention_output, z, width_, width_, projected);
        add_and_norm(layer_.attention_norm, projected, x_, middle);
        linear(layer_.intermediate, middle, width_, layer_.inner, inner, true);
        linear(layer_.output, inner, layer_.inner, width_, projected);
        add_and_norm(layer_.output_norm, projected, middle, out_);
        return status_;
    }

  private:
    void note(int status) {
        if (status != DONE) status_ = status;
    }

    void linear(const Dense& dense, const float* x, int64_t depth, int64_t n, float* out, bool gelu = false) {
        const Product call = product(dense, x, depth, n, out, gelu);
        note(matrix_product(&call));
    }

    Product product(const Dense& dense, const float* x, int64_t depth, int64_t n, float* out, bool gelu = false) const {
        Product product{};
        product.a = {x, depth, 1, 0};
        product.b = {dense.weight, depth, 1, bfloat16_};
        product.bias = dense.bias;
        product.out = out;
        product.out_row = n;
        product.m = rows_;
        product.n = n;
        product.depth = depth;
        product.rounds = rounds_;
        product.gelu = gelu;
        product.threads = call_.threads;
        product.parallel = call_.parallel;
        return product;
    }

    // The two halves of W_g [X_i; V_j] + b: p_i of tokens, r_j of frames. Returns what follows them.
    float* gate(const Shift& shift, Modality& modality, float* to) const {
        for (int64_t i = 0; i < rows_; ++i) to[i] = dot(shift.gate, x_ + i * width_, width_);
        modality.token_gate = to;
        modality.token_gate_stride = 1;
        to += rows_;
        const float* frames = static_cast<const float*>(modality.frames);
        for (int64_t j = 0; j < modality.rows; ++j)
            to[j] = dot(shift.gate + width_, frames + j * modality.frames_stride, modality.size) + *shift.bias;
        modality.frame_gate = to;
        modality.frame_gate_stride = 1;
        return to + modality.rows;
    }

    static float dot(const float* a, const float* b, int64_t n) {
        Vec total{};
        for (int64_t i = 0; i < n; i += LANES) total += load_some(a + i, n - i) * load_some(b + i, n - i);
        return sum(total);
    }

    // LayerNorm of x + residual; x is overwritten.
    void add_and_norm(const Norm& norm, float* x, const float* residual, float* out) const {
        constexpr int64_t ROWS = 16;  // of a task
        const float share = 1.0f / static_cast<float>(width_);
        Call call = call_;
        call.threads = rows_ < 4 * ROWS ? 1 : call.threads;  // waking one up would take longer
        for_each(call, (rows_ + ROWS - 1) / ROWS, 1, [&](int64_t task) {
            for (int64_t i = task * ROWS; i < std::min(rows_, (task + 1) * ROWS); ++i) {
                float *row = x + i * width_, *to = out + i * width_;
                const float* added = residual + i * width_;
                Vec total{}, squares{};
                for (int64_t j = 0; j < width_; j += LANES) {
                    const Vec value = load_some(row + j, width_ - j) + load_some(added + j, width_ - j);
                    store_some(row + j, value, width_ - j);
                    total += value;
                }
                const float mean = sum(total) * share;
                for (int64_t j = 0; j < width_; j += LANES) {
                    const Vec value = before(width_ - j) ? load_some(row + j, width_ - j) - mean : Vec{};
                    squares += value * value;
                }
                const float scale = 1.0f / std::sqrt(sum(squares) * share + static_cast<float>(norm.epsilon));
                for (int64_t j = 0; j < width_; j += LANES) {
                    const int64_t n = width_ - j;
                    const Vec value = (load_some(row + j, n) - mean) * scale;
                    store_some(to + j, value * load_some(norm.weight + j, n) + load_some(norm.bias + j, n), n);
                }
            }
        });
    }

    const Layer& layer_;
    Call call_;
    const float* x_;
    float* out_;
    int64_t rounds_, bfloat16_, rows_, width_;
    std::atomic<int> status_;
};

}  // namespace

extern "C" int bert_layers(const LayersCall* call) {
    const Layer* layers = reinterpret_cast<const Layer*>(call + 1);
    const float* x = call->x;
    int status = DONE;
    for (int64_t i = 0; i < call->count && status == DONE; ++i) {
        status = Run(layers[i], *call, x, call->out).run();
        x = call->out;
    }
    call_scratch.release_above(MOST_KEPT);
    return status;
}
