// CMS attention on the CPU (Eq. 1-7 of the paper), forward and backward, for packed sequences in float32 or bfloat16.
//
// Plain C interface in cms_attention.h and at the end of the file: pointers in, status out.
//
// Every matrix product is one register-blocked kernel, C = A B or C += A B, with A of any strides and the rows of B and
// C padded to whole vectors. All arithmetic is float32. A task owns what it writes and sums in a fixed order: results
// do not depend on the number of threads. Queries go in blocks of QUERIES rows against all keys, so that scratch memory
// is linear in the length. From forward to backward are kept the mean frames (T, K), the shifts a (H, T, d_h), whose
// product would be a fifth of the backward pass, and each row's maximum and inverse sum of the softmax (H, T, 2): apart,
// as their log-sum-exp in float32 would lose digits where scores are large.

#include "cms_attention.h"

#include <type_traits>

#include "common.h"

namespace {

constexpr int64_t QUERIES = 64;

enum Activation : int64_t { RELU, SIGMOID, TANH };

// act(s) and act'(s); that of relu is 0 at 0, as in PyTorch.
inline void activate(int64_t activation, Vec s, Vec& gate, Vec& slope) {
    if (activation == RELU) {
        gate = s < 0.0f ? Vec{} : s;  // NaN stays NaN
        slope = s > 0.0f ? splat(1.0f) : Vec{};
    } else if (activation == SIGMOID) {
        gate = sigmoid(s);
        slope = gate * (1.0f - gate);
    } else {
        gate = tanh(s);
        slope = 1.0f - gate * gate;
    }
}

// ------------------------------------------------------------------ matrix product

using Block = void (*)(int64_t, const float*, int64_t, int64_t, const float*, int64_t, float*, int64_t, bool);

template <int ROWS, int VECTORS>
void block(int64_t depth, const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row, float* c,
           int64_t c_row, bool add) {
    Vec total[ROWS][VECTORS];
    for (int i = 0; i < ROWS; ++i)
        for (int j = 0; j < VECTORS; ++j) total[i][j] = Vec{};
    for (int64_t k = 0; k < depth; ++k) {
        Vec row[VECTORS];
        for (int j = 0; j < VECTORS; ++j) row[j] = load(b + j * LANES);
        for (int i = 0; i < ROWS; ++i) {
            const Vec x = splat(a[i * a_row]);
            for (int j = 0; j < VECTORS; ++j) total[i][j] += x * row[j];
        }
        a += a_column;
        b += b_row;
    }
    // Added last: a sum of sums of DEPTH terms rounds less than one chain of all of them.
    for (int i = 0; i < ROWS; ++i)
        for (int j = 0; j < VECTORS; ++j) {
            float* to = c + i * c_row + j * LANES;
            store(to, add ? load(to) + total[i][j] : total[i][j]);
        }
}

template <int VECTORS>
Block block_of(int64_t rows) {
    static constexpr Block blocks[MAX_ROWS] = {block<1, VECTORS>, block<2, VECTORS>, block<3, VECTORS>,
                                               block<4, VECTORS>, block<5, VECTORS>, block<6, VECTORS>};
    return blocks[rows - 1];
}

Block block_of(int64_t rows, int64_t vectors) {
    if constexpr (MAX_VECTORS == 4) {
        if (vectors == 4) return block_of<4>(rows);
        if (vectors == 3) return block_of<3>(rows);
    }
    return vectors == 2 ? block_of<2>(rows) : block_of<1>(rows);
}

// C (m, n) = A (m, depth) B (depth, n), or += with `add`. n must be whole vectors; B and C have unit column stride.
void product(int64_t m, int64_t n, int64_t depth, const float* a, int64_t a_row, int64_t a_column, const float* b,
             int64_t b_row, float* c, int64_t c_row, bool add = false) {
    const int64_t n_vectors = n / LANES, row_parts = (m + MAX_ROWS - 1) / MAX_ROWS;
    const int64_t column_parts = (n_vectors + MAX_VECTORS - 1) / MAX_VECTORS;
    int64_t k = 0;
    do {  // at least once: an empty sum is 0
        const int64_t part = std::min(DEPTH, depth - k);
        for (int64_t jp = 0; jp < column_parts; ++jp) {
            const int64_t j = n_vectors * jp / column_parts, vectors = n_vectors * (jp + 1) / column_parts - j;
            for (int64_t ip = 0; ip < row_parts; ++ip) {
                const int64_t i = m * ip / row_parts, rows = m * (ip + 1) / row_parts - i;
                block_of(rows, vectors)(part, a + i * a_row + k * a_column, a_row, a_column,
                                        b + k * b_row + j * LANES, b_row, c + i * c_row + j * LANES, c_row,
                                        add || k > 0);
            }
        }
        k += part;
    } while (k < depth);
}

// ------------------------------------------------------------------ rows in memory

// Row of n elements -> n_padded floats, the rest 0.
template <class T>
inline void load_row(float* to, const T* from, int64_t n, int64_t n_padded) {
    for (int64_t i = 0; i < n; ++i) to[i] = to_float(from[i]);
    for (int64_t i = n; i < n_padded; ++i) to[i] = 0;
}

// n floats, in memory whole vectors -> row of n elements.
template <class T>
inline void store_row(T* to, const float* from, int64_t n, float scale = 1) {
    for (int64_t i = 0; i < n; i += LANES) store_some(to + i, load(from + i) * scale, n - i);
}

// Philox 4x32, 7 rounds. Fills 4 rows of dropout's factors, 0 or 1 / (1 - p), for queries i, ..., i + 3 (i a multiple
// of 4) and all keys; the counter is (key, query / 4, head, sequence), whatever the vector length.
void dropout_factors(uint64_t seed, int64_t sequence, int64_t head, int64_t query, int64_t n_keys, float dropout_p,
                     float* factors, int64_t row) {
    const uint32_t threshold = static_cast<uint32_t>(std::lround(static_cast<double>(dropout_p) * (1 << 24)));
    const float kept = 1.0f / (1.0f - dropout_p);
    for (int64_t key = 0; key < n_keys; key += LANES) {
        uint32_t c[4][LANES];
        for (int l = 0; l < LANES; ++l) {
            c[0][l] = static_cast<uint32_t>(key + l);
            c[1][l] = static_cast<uint32_t>(query / 4);
            c[2][l] = static_cast<uint32_t>(head);
            c[3][l] = static_cast<uint32_t>(sequence);
        }
        uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
        for (int round = 0; round < 7; ++round) {
            for (int l = 0; l < LANES; ++l) {
                const uint64_t x = static_cast<uint64_t>(c[0][l]) * 0xD2511F53u;
                const uint64_t y = static_cast<uint64_t>(c[2][l]) * 0xCD9E8D57u;
                c[0][l] = static_cast<uint32_t>(y >> 32) ^ c[1][l] ^ k0;
                c[2][l] = static_cast<uint32_t>(x >> 32) ^ c[3][l] ^ k1;
                c[1][l] = static_cast<uint32_t>(y);
                c[3][l] = static_cast<uint32_t>(x);
            }
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        for (int i = 0; i < 4; ++i)
            for (int l = 0; l < LANES; ++l) factors[i * row + key + l] = c[i][l] >> 8 >= threshold ? kept : 0.0f;
    }
}

template <class T>
class Attention {
  public:
    explicit Attention(const Call& call)
        : call_(call),
          head_padded_(multiple(call.head_size, 16)),
          size_{padded_size(call.modalities[0]), padded_size(call.modalities[1])},
          depth_(size_[0] + size_[1]),
          // For one short sequence, packing a head's shift weights takes longer than their product.
          reads_weights_in_place_(std::is_same_v<T, float> && call.batch == 1 && call.rows <= QUERIES && !call.shift),
          status_(DONE) {
        longest_ = checked_longest(call.cu_seqlens, call.rows);
        for (int m = 0; m < 2; ++m)
            if (size_[m]) checked_longest(call.modalities[m].cu_seqlens, call.modalities[m].rows);
        // A thread's share must be worth waking it up for; results do not depend on it.
        const double work = static_cast<double>(call.rows) * static_cast<double>(call.heads * call.head_size);
        call_.threads = threads_for(call.threads, static_cast<int64_t>(work / 4096));
    }

    int forward() {
        if (status_ != DONE) return status_;
        const int64_t of_mean = depth_ * padded(longest_), of_weights = call_.heads * depth_ * head_padded_;
        float* transposed = call_scratch.take(reads_weights_in_place_ ? of_mean : of_weights, status_);
        if (status_ != DONE) return status_;
        if (depth_ && reads_weights_in_place_) {
            mean_frames(0, 0);
            transpose(transposed, padded(longest_), call_.mean, depth_, longest_, depth_);
        } else if (depth_) {
            const int64_t blocks = (longest_ + QUERIES - 1) / QUERIES;
            for_each(call_, call_.heads + call_.batch * blocks, 1, [&](int64_t task) {
                if (task < call_.heads) {
                    float* weight = thread_scratch.take(head_padded_ * depth_, status_);
                    if (weight == nullptr) return;
                    pack_weight(task, weight);
                    transpose(transposed + task * depth_ * head_padded_, head_padded_, weight, depth_, head_padded_,
                              depth_);
                } else {
                    mean_frames((task - call_.heads) / blocks, (task - call_.heads) % blocks * QUERIES);
                }
            });
        }
        if (status_ != DONE) return status_;
        for_each_head([&](int64_t b, int64_t head) { forward_head(b, head, transposed); });
        zero_tail(static_cast<T*>(call_.out), call_.heads * call_.head_size, call_.cu_seqlens, call_.rows);
        zero_tail(call_.mean, depth_, call_.cu_seqlens, call_.rows);
        for (int64_t head = 0; head < call_.heads; ++head) {
            zero_tail(call_.softmax + head * call_.rows * 2, 2, call_.cu_seqlens, call_.rows);
            if (depth_ && call_.shift != nullptr)
                zero_tail(call_.shift + head * call_.rows * head_padded_, head_padded_, call_.cu_seqlens, call_.rows);
        }
        return status_;
    }

    int backward() {
        if (status_ != DONE) return status_;
        const int64_t weights = call_.heads * depth_ * head_padded_, shifts = call_.heads * call_.rows * head_padded_;
        float* weight = call_scratch.take(weights + (depth_ ? shifts : 0) + call_.rows * depth_, status_);
        if (status_ != DONE) return status_;
        float* d_shift = depth_ ? weight + weights : nullptr;  // (H, T, d_h padded)
        float* d_mean = weight + weights + shifts;             // (T, K)
        for_each_head([&](int64_t b, int64_t head) {
            // Read after this loop only: packed here it needs none of its own.
            if (b == 0 && depth_) pack_weight(head, weight + head * head_padded_ * depth_);
            backward_head(b, head, d_shift);
        });
        for (void* gradient : {call_.d_query, call_.d_key, call_.d_value})
            zero_tail(static_cast<T*>(gradient), call_.heads * call_.head_size, call_.cu_seqlens, call_.rows);
        if (!depth_ || status_ != DONE) return status_;

        const int64_t tokens = call_.cu_seqlens[call_.batch];
        const int64_t token_blocks = (tokens + BLOCK - 1) / BLOCK;
        const int64_t weight_blocks = (call_.head_size + BLOCK - 1) / BLOCK * call_.heads;
        for_each(call_, token_blocks + weight_blocks, 1, [&](int64_t task) {
            if (task < weight_blocks)
                weight_gradient(task % call_.heads, task / call_.heads * BLOCK, tokens, d_shift);
            else
                mean_gradient((task - weight_blocks) * BLOCK, tokens, weight, d_shift, d_mean);
        });
        for_each(call_, call_.batch, 1, [&](int64_t b) { gate_gradients(b, d_mean); });
        for (int m = 0; m < 2; ++m) {
            if (!size_[m]) continue;
            const Modality& modality = call_.modalities[m];
            zero_tail(static_cast<T*>(modality.d_token_gate), 1, call_.cu_seqlens, call_.rows);
            zero_tail(static_cast<T*>(modality.d_frame_gate), 1, modality.cu_seqlens, modality.rows);
            if (modality.d_frames)
                zero_tail(static_cast<T*>(modality.d_frames), modality.size, modality.cu_seqlens, modality.rows);
        }
        return status_;
    }

  private:
    static constexpr int64_t BLOCK = 24;  // rows a task takes of the products over all tokens
    static constexpr int64_t HEADS_AT_ONCE = 6;  // one after the other by one thread, which fetches the next meanwhile

    // The columns a modality has in `mean`: the same on every CPU, because the caller allocates it. So with `shift`.
    static int64_t padded_size(const Modality& modality) { return multiple(modality.size, 16); }

    // The longest sequence; notes where sequences do not lie one after the other within the rows.
    int64_t checked_longest(const int32_t* cu_seqlens, int64_t rows) {
        int64_t longest = 0;
        bool good = cu_seqlens[0] == 0 && cu_seqlens[call_.batch] <= rows;
        for (int64_t b = 0; b < call_.batch; ++b) {
            good = good && cu_seqlens[b] <= cu_seqlens[b + 1];
            longest = std::max<int64_t>(longest, cu_seqlens[b + 1] - cu_seqlens[b]);
        }
        if (!good) status_ = BAD_CU_SEQLENS;
        return longest;
    }

    // Rows of no sequence.
    template <class Element>
    void zero_tail(Element* x, int64_t columns, const int32_t* cu_seqlens, int64_t rows) const {
        for (int64_t i = cu_seqlens[call_.batch] * columns; i < rows * columns; ++i) x[i] = Element{};
    }

    // body(sequence, head): a sequence's heads one after the other, because they lie beside each other in memory.
    template <class Body>
    void for_each_head(const Body& body) const {
        const int64_t tasks = call_.batch * call_.heads;  // with few of them, a smaller share for every thread
        for_each(call_, tasks, std::max<int64_t>(1, std::min(HEADS_AT_ONCE, tasks / (2 * call_.threads))),
                 [&](int64_t task) { body(task / call_.heads, task % call_.heads); });
    }

    // A head's rows of both shift weights -> (d_h padded, K). K is the axis of the mean frames: the face's, padded,
    // then the voice's.
    void pack_weight(int64_t head, float* rows) const {
        std::fill(rows + call_.head_size * depth_, rows + head_padded_ * depth_, 0.0f);
        for (int m = 0; m < 2; ++m) {
            const Modality& modality = call_.modalities[m];
            for (int64_t d = 0; size_[m] && d < call_.head_size; ++d) {
                const int64_t row = head * call_.head_size + d;
                load_row(rows + d * depth_ + m * size_[0],
                         static_cast<const T*>(modality.weight) + row * modality.weight_stride, modality.size,
                         size_[m]);
            }
        }
    }

    // The frames of a sequence, (n, size padded).
    void load_frames(int m, int64_t first, int64_t n, float* frames) const {
        const Modality& modality = call_.modalities[m];
        for (int64_t j = 0; j < n; ++j)
            load_row(frames + j * size_[m],
                     static_cast<const T*>(modality.frames) + (first + j) * modality.frames_stride, modality.size,
                     size_[m]);
    }

    void load_gates(const void* gates, int64_t stride, int64_t first, int64_t n, float* to) const {
        for (int64_t i = 0; i < n; ++i) to[i] = to_float(static_cast<const T*>(gates)[(first + i) * stride]);
        std::fill(to + n, to + padded(n), 0.0f);
    }

    // m_i = 1/N_m sum_j act(p_i + r_j) x_j of a block of a sequence's tokens -> mean (T, K).
    void mean_frames(int64_t b, int64_t first) {
        const int64_t start = call_.cu_seqlens[b], n = call_.cu_seqlens[b + 1] - start;
        const int64_t n_tokens = std::min(QUERIES, n - first);
        if (n_tokens <= 0) return;
        for (int m = 0; m < 2; ++m) {
            if (!size_[m]) continue;
            const Modality& modality = call_.modalities[m];
            const int64_t first_frame = modality.cu_seqlens[b];
            const int64_t n_frames = modality.cu_seqlens[b + 1] - first_frame, width = padded(n_frames);
            float* frames = thread_scratch.take(n_frames * size_[m] + (QUERIES + 1) * width + padded(QUERIES), status_);
            if (frames == nullptr) return;
            float *frame_gate = frames + n_frames * size_[m], *gates = frame_gate + width;
            float* token_gate = gates + QUERIES * width;
            load_frames(m, first_frame, n_frames, frames);
            load_gates(modality.frame_gate, modality.frame_gate_stride, first_frame, n_frames, frame_gate);
            load_gates(modality.token_gate, modality.token_gate_stride, start + first, n_tokens, token_gate);
            const float share = 1.0f / static_cast<float>(std::max<int64_t>(n_frames, 1));
            for (int64_t i = 0; i < n_tokens; ++i)
                for (int64_t j = 0; j < width; j += LANES) {
                    Vec gate, slope;
                    activate(call_.activation, token_gate[i] + load(frame_gate + j), gate, slope);
                    store(gates + i * width + j, gate * share);
                }
            product(n_tokens, size_[m], n_frames, gates, width, 1, frames, size_[m],
                    call_.mean + (start + first) * depth_ + m * size_[0], depth_);
        }
    }

    // x, or factor (x + a), of one head of one sequence -> (n, d_h padded).
    void load_head(const Heads& x, int64_t head, int64_t start, int64_t n, float* to, const float* shift = nullptr,
                   float factor = 1) const {
        const T* from = static_cast<const T*>(x.data) + start * x.row + head * x.head;
        const int64_t whole = call_.head_size / LANES * LANES;
        float last[LANES];
        for (int64_t i = 0; i < n; ++i, from += x.row, to += head_padded_)
            for (int64_t d = 0; d < head_padded_; d += LANES) {
                __builtin_prefetch(from + x.head + d);  // the next head's: rows are too short for the hardware to see
                if (d >= whole) load_row(last, from + d, std::max<int64_t>(call_.head_size - d, 0), LANES);
                Vec element = d < whole ? load_elements(from + d) : load(last);
                if (shift != nullptr) element += load(shift + i * head_padded_ + d);
                store(to + d, element * factor);
            }
    }

    // The tiles scale (q + a), k + a and v + a. With the scale in the queries, forward and backward see the same scores
    // to the bit.
    void load_tiles(int64_t head, int64_t start, int64_t n, const float* shift, float* q, float* k, float* v) const {
        load_head(call_.query, head, start, n, q, shift, static_cast<float>(call_.scale));
        load_head(call_.key, head, start, n, k, shift);
        load_head(call_.value, head, start, n, v, shift);
    }

    void drop(int64_t b, int64_t head, int64_t first, int64_t n_queries, int64_t n_keys, float* factors) const {
        if (call_.seed == nullptr) return;
        for (int64_t i = 0; i < n_queries; i += 4)
            dropout_factors(static_cast<uint64_t>(*call_.seed), b, head, first + i, n_keys,
                            static_cast<float>(call_.dropout_p), factors + i * padded(n_keys), padded(n_keys));
    }

    // The shifts of a head of the only sequence, from the mean frames transposed, (K, n padded): a^T = W m^T.
    void shift_in_place(int64_t head, int64_t n, const float* mean_transposed, float* transposed, float* shift) const {
        const int64_t width = padded(n);
        for (int m = 0; m < 2; ++m) {
            const Modality& modality = call_.modalities[m];
            if (size_[m])
                product(call_.head_size, width, modality.size,
                        static_cast<const float*>(modality.weight) + head * call_.head_size * modality.weight_stride,
                        modality.weight_stride, 1, mean_transposed + m * size_[0] * width, width, transposed, width,
                        m && size_[0]);
        }
        transpose(shift, head_padded_, transposed, width, call_.head_size, n);
    }

    void forward_head(int64_t b, int64_t head, const float* transposed) {
        const int64_t start = call_.cu_seqlens[b], n = call_.cu_seqlens[b + 1] - start, width = padded(n);
        if (n == 0) return;
        const int64_t tile = n * head_padded_, blocked = std::min(QUERIES, multiple(n, 4));
        float* q = thread_scratch.take(
            4 * tile + head_padded_ * width + blocked * (2 * width + head_padded_), status_);
        if (q == nullptr) return;
        float *k = q + tile, *v = k + tile, *shift = v + tile, *k_transposed = shift + tile;
        if (!depth_)
            shift = nullptr;
        else if (call_.shift != nullptr)
            shift = call_.shift + (head * call_.rows + start) * head_padded_;
        float *scores = k_transposed + head_padded_ * width, *factors = scores + blocked * width;
        float* z = factors + blocked * width;
        if (shift != nullptr && reads_weights_in_place_)
            shift_in_place(head, n, transposed, k_transposed, shift);
        else if (shift != nullptr)
            product(n, head_padded_, depth_, call_.mean + start * depth_, depth_, 1,
                    transposed + head * depth_ * head_padded_, head_padded_, shift, head_padded_);
        load_tiles(head, start, n, shift, q, k, v);
        transpose(k_transposed, width, k, head_padded_, n, call_.head_size);

        for (int64_t first = 0; first < n; first += QUERIES) {
            const int64_t n_queries = std::min(QUERIES, n - first);
            product(n_queries, width, call_.head_size, q + first * head_padded_, head_padded_, 1, k_transposed, width,
                    scores, width);
            drop(b, head, first, n_queries, n, factors);
            float inverse[QUERIES];
            for (int64_t i = 0; i < n_queries; ++i) {
                float* row = scores + i * width;
                Vec peaks = splat(-INFINITY);
                for (int64_t j = 0; j < width; j += LANES) {
                    const Vec s = before(n - j) ? load(row + j) : splat(-INFINITY);
                    store(row + j, s);
                    peaks = maximum(peaks, s);
                }
                const float peak = largest(peaks);
                Vec total{};
                for (int64_t j = 0; j < width; j += LANES) {
                    Vec p = exponential(load(row + j) - peak);
                    total += p;
                    if (call_.seed != nullptr) p *= load(factors + i * width + j);
                    store(row + j, p);
                }
                const float norm = sum(total);
                inverse[i] = 1.0f / norm;
                float* of_row = call_.softmax + (head * call_.rows + start + first + i) * 2;
                of_row[0] = peak;
                of_row[1] = inverse[i];
            }
            product(n_queries, head_padded_, n, scores, width, 1, v, head_padded_, z, head_padded_);
            for (int64_t i = 0; i < n_queries; ++i) {
                const int64_t row = (start + first + i) * call_.heads + head;
                store_row(static_cast<T*>(call_.out) + row * call_.head_size, z + i * head_padded_, call_.head_size,
                          inverse[i]);
            }
        }
    }

    // dq, dk, dv of one head of one sequence, and da = dq + dk + dv.
    void backward_head(int64_t b, int64_t head, float* d_shift) {
        const int64_t start = call_.cu_seqlens[b], n = call_.cu_seqlens[b + 1] - start, width = padded(n);
        if (n == 0) return;
        const int64_t tile = n * head_padded_, blocked = std::min(QUERIES, multiple(n, 4));
        float* q = thread_scratch.take(7 * tile + 2 * head_padded_ * width + 3 * blocked * width, status_);
        if (q == nullptr) return;
        float *k = q + tile, *v = k + tile, *dz = v + tile, *dq = dz + tile, *dk = dq + tile;
        float *dv = dk + tile, *k_transposed = dv + tile, *v_transposed = k_transposed + head_padded_ * width;
        float *p = v_transposed + head_padded_ * width, *ds = p + blocked * width, *factors = ds + blocked * width;
        load_tiles(head, start, n, depth_ ? call_.shift + (head * call_.rows + start) * head_padded_ : nullptr, q, k, v);
        load_head(call_.d_out, head, start, n, dz);
        transpose(k_transposed, width, k, head_padded_, n, call_.head_size);
        transpose(v_transposed, width, v, head_padded_, n, call_.head_size);

        for (int64_t first = 0; first < n; first += QUERIES) {
            const int64_t n_queries = std::min(QUERIES, n - first);
            const float *q_block = q + first * head_padded_, *dz_block = dz + first * head_padded_;
            product(n_queries, width, call_.head_size, q_block, head_padded_, 1, k_transposed, width, p, width);
            product(n_queries, width, call_.head_size, dz_block, head_padded_, 1, v_transposed, width, ds, width);
            drop(b, head, first, n_queries, n, factors);
            for (int64_t i = 0; i < n_queries; ++i) {
                const float* of_row = call_.softmax + (head * call_.rows + start + first + i) * 2;
                const float peak = of_row[0], inverse = of_row[1];
                float *p_row = p + i * width, *ds_row = ds + i * width, *factor = factors + i * width;
                Vec delta{};
                for (int64_t j = 0; j < width; j += LANES) {
                    const Vec probability = before(n - j) ? exponential(load(p_row + j) - peak) * inverse : Vec{};
                    store(p_row + j, probability);
                    Vec dp = load(ds_row + j);  // 0 beyond n, as v is
                    if (call_.seed != nullptr) dp *= load(factor + j);
                    store(ds_row + j, dp);
                    delta += probability * dp;
                }
                const float total = sum(delta);
                for (int64_t j = 0; j < width; j += LANES) {
                    const Vec probability = load(p_row + j);
                    store(ds_row + j, probability * (load(ds_row + j) - total));
                    if (call_.seed != nullptr) store(p_row + j, probability * load(factor + j));
                }
            }
            product(n_queries, head_padded_, n, ds, width, 1, k, head_padded_, dq + first * head_padded_, head_padded_);
            product(n, head_padded_, n_queries, ds, 1, width, q_block, head_padded_, dk, head_padded_, first > 0);
            product(n, head_padded_, n_queries, p, 1, width, dz_block, head_padded_, dv, head_padded_, first > 0);
        }
        for (int64_t i = 0; i < tile; i += LANES) store(dq + i, load(dq + i) * static_cast<float>(call_.scale));
        for (int64_t i = 0; i < n; ++i) {
            const int64_t row = ((start + i) * call_.heads + head) * call_.head_size;
            store_row(static_cast<T*>(call_.d_query) + row, dq + i * head_padded_, call_.head_size);
            store_row(static_cast<T*>(call_.d_key) + row, dk + i * head_padded_, call_.head_size);
            store_row(static_cast<T*>(call_.d_value) + row, dv + i * head_padded_, call_.head_size);
        }
        if (d_shift == nullptr) return;
        float* to = d_shift + (head * call_.rows + start) * head_padded_;
        for (int64_t i = 0; i < tile; i += LANES) store(to + i, load(dq + i) + load(dk + i) + load(dv + i));
    }

    // dm = W^T da of a block of tokens.
    void mean_gradient(int64_t first, int64_t tokens, const float* weight, const float* d_shift, float* d_mean) const {
        for (int64_t head = 0; head < call_.heads; ++head)
            product(std::min(BLOCK, tokens - first), depth_, head_padded_,
                    d_shift + (head * call_.rows + first) * head_padded_, head_padded_, 1,
                    weight + head * head_padded_ * depth_, depth_, d_mean + first * depth_, depth_, head > 0);
    }

    // dW = sum_i da_i m_i^T of a block of a head's rows.
    void weight_gradient(int64_t head, int64_t first, int64_t tokens, const float* d_shift) {
        if (!call_.modalities[0].d_weight && !call_.modalities[1].d_weight) return;
        float* to = thread_scratch.take(BLOCK * depth_, status_);
        if (to == nullptr) return;
        const int64_t rows = std::min(BLOCK, call_.head_size - first);
        product(rows, depth_, tokens, d_shift + head * call_.rows * head_padded_ + first, 1, head_padded_, call_.mean,
                depth_, to, depth_);
        for (int m = 0; m < 2; ++m) {
            const Modality& modality = call_.modalities[m];
            for (int64_t i = 0; modality.d_weight && i < rows; ++i)
                store_row(static_cast<T*>(modality.d_weight) +
                              (head * call_.head_size + first + i) * modality.size,
                          to + i * depth_ + m * size_[0], modality.size);
        }
    }

    // dp_i = sum_j dg_ij act'(p_i + r_j) with dg_ij = 1/N_m dm_i . x_j; dr_j = the same sum over i;
    // dx_j = 1/N_m sum_i g_ij dm_i.
    void gate_gradients(int64_t b, const float* d_mean) {
        const int64_t start = call_.cu_seqlens[b], n = call_.cu_seqlens[b + 1] - start;
        for (int m = 0; m < 2; ++m) {
            if (!size_[m]) continue;
            const Modality& modality = call_.modalities[m];
            const int64_t first_frame = modality.cu_seqlens[b];
            const int64_t n_frames = modality.cu_seqlens[b + 1] - first_frame, width = padded(n_frames);
            float* frames = thread_scratch.take(n_frames * size_[m] + (size_[m] + 2 * QUERIES + 3) * width + padded(n),
                                                status_);
            if (frames == nullptr) return;
            float *transposed = frames + n_frames * size_[m], *gates = transposed + size_[m] * width;
            float *d_gates = gates + QUERIES * width, *frame_gate = d_gates + QUERIES * width;
            float *d_frame_gate = frame_gate + width, *of_block = d_frame_gate + width, *token_gate = of_block + width;
            load_frames(m, first_frame, n_frames, frames);
            transpose(transposed, width, frames, size_[m], n_frames, size_[m]);
            load_gates(modality.frame_gate, modality.frame_gate_stride, first_frame, n_frames, frame_gate);
            load_gates(modality.token_gate, modality.token_gate_stride, start, n, token_gate);
            std::fill(d_frame_gate, d_frame_gate + width, 0.0f);
            float* d_frames = frames;  // read for the last time above
            std::fill(d_frames, d_frames + n_frames * size_[m], 0.0f);
            const float share = 1.0f / static_cast<float>(std::max<int64_t>(n_frames, 1));
            for (int64_t first = 0; first < n; first += QUERIES) {
                const int64_t n_tokens = std::min(QUERIES, n - first);
                const float* dm = d_mean + (start + first) * depth_ + m * size_[0];
                product(n_tokens, width, modality.size, dm, depth_, 1, transposed, width, d_gates, width);
                std::fill(of_block, of_block + width, 0.0f);  // a sum of sums, as in a product
                for (int64_t i = 0; i < n_tokens; ++i) {
                    Vec total{};
                    for (int64_t j = 0; j < width; j += LANES) {
                        Vec gate, slope;
                        activate(call_.activation, token_gate[first + i] + load(frame_gate + j), gate, slope);
                        store(gates + i * width + j, gate * share);
                        const Vec d = load(d_gates + i * width + j) * slope * share;  // 0 beyond the last frame
                        total += d;
                        store(of_block + j, load(of_block + j) + d);
                    }
                    store_some(static_cast<T*>(modality.d_token_gate) + start + first + i, splat(sum(total)), 1);
                }
                for (int64_t j = 0; j < width; j += LANES) store(d_frame_gate + j, load(d_frame_gate + j) + load(of_block + j));
                if (modality.d_frames)
                    product(n_frames, size_[m], n_tokens, gates, 1, width, dm, depth_, d_frames, size_[m], true);
            }
            store_row(static_cast<T*>(modality.d_frame_gate) + first_frame, d_frame_gate, n_frames);
            for (int64_t j = 0; modality.d_frames && j < n_frames; ++j)
                store_row(static_cast<T*>(modality.d_frames) + (first_frame + j) * modality.size,
                          d_frames + j * size_[m], modality.size);
        }
    }

    Call call_;
    int64_t head_padded_, size_[2], depth_;
    int64_t longest_;
    bool reads_weights_in_place_;
    std::atomic<int> status_;
};

}  // namespace

extern "C" {

int cms_attention_forward(const Call* call) {
    return call->bfloat16 ? Attention<BFloat16>(*call).forward() : Attention<float>(*call).forward();
}

int cms_attention_backward(const Call* call) {
    const int status = call->bfloat16 ? Attention<BFloat16>(*call).backward() : Attention<float>(*call).backward();
    call_scratch.release_above(MOST_KEPT);
    return status;
}

// Bytes of scratch that calls took since the last call of this, of every thread the most.
int64_t most_scratch_bytes() {
    ++scratch_counts;
    return scratch_floats.exchange(0) * static_cast<int64_t>(sizeof(float));
}
}
