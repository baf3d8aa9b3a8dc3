// One-layer LSTM on the CPU (Eq. 11 of the paper), forward and backward over time, in float32; no padding. The operands
// of a time step's products with W_hh may be rounded to bfloat16: all else, sums included, stays float32.
//
// The caller orders rows by time, the longest sequence first, so that a time step is a slice and its sequences are the
// first rows of the step before; it computes what does not depend on time: the products with the frames and the
// gradients of the weights. Here is the recurrence: one parallel loop a time step, in which a task owns some units (of
// some sequences): their products with W_hh, the gates and the cell, without a pass over memory in between. W_hh is
// packed at the start so that a task reads it in order, unless there is one sequence forward in float32; with few
// sequences left a step costs one reading of W_hh.
// A task sums in a fixed order: results do not depend on the number of threads.

#include "product.h"

extern "C" {

struct LSTM {
    const int64_t* batch_sizes;  // (steps,), never rising
    int64_t steps, size;         // size = d
    const float* weight;         // W_hh (4d, d): the gates i, f, g, o
    int64_t weight_stride;
    float* gates;          // (F, 4d); forward: products with the frames in, activated gates out
    float* hidden;              // (F, d), forward only
    float* cells;               // (F, d)
    const float* d_hidden;      // (F, d), backward only
    float* d_gates;             // (F, 4d), of the gates before activation, backward only
    BFloat16* rounded_hidden;   // (F, d, made even with a column of 0), forward only; null = products in float32
    BFloat16* rounded_d_gates;  // (F, 4d), backward only; likewise
    int64_t threads;
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel; null = one thread
};
static_assert(sizeof(LSTM) == 14 * 8, "ops/lstm/cpu.py lays it out");
}

namespace {

constexpr int GATES = 4;                             // a panel of W_hh is as many vectors wide
constexpr int ROWS = MAX_VECTORS == 4 ? MAX_ROWS : 3;  // accumulators: ROWS x 4 vectors
constexpr int64_t PANEL = GATES * LANES;

// total (rows, 4 vectors) = A (rows, depth words) times a panel (depth words, PANEL).
template <class T, int R>
void panel_product(int64_t depth, const T* a, int64_t a_row, const float* panel, Vec (*total)[GATES]) {
    constexpr int64_t WORDS = DEPTH / TERMS<T>;
    for (int i = 0; i < R; ++i)
        for (int j = 0; j < GATES; ++j) total[i][j] = Vec{};
    for (int64_t begin = 0; begin < depth; begin += WORDS) {
        Vec part[R][GATES];
        for (int i = 0; i < R; ++i)
            for (int j = 0; j < GATES; ++j) part[i][j] = Vec{};
        for (int64_t k = begin; k < std::min(begin + WORDS, depth); ++k) {
            Vec row[GATES];
            for (int j = 0; j < GATES; ++j) row[j] = load(panel + k * PANEL + j * LANES);
            for (int i = 0; i < R; ++i) {
                const Vec x = splat_word(a + i * a_row + k * TERMS<T>);
                for (int j = 0; j < GATES; ++j) part[i][j] = add_products<T>(part[i][j], x, row[j]);
            }
        }
        for (int i = 0; i < R; ++i)
            for (int j = 0; j < GATES; ++j) total[i][j] += part[i][j];
    }
}

template <class T>
void panel_product(int64_t rows, int64_t depth, const T* a, int64_t a_row, const float* panel, Vec (*total)[GATES]) {
    static constexpr void (*products[])(int64_t, const T*, int64_t, const float*, Vec(*)[GATES]) = {
        panel_product<T, 1>, panel_product<T, 2>, panel_product<T, 3>,
        panel_product<T, 4>, panel_product<T, 5>, panel_product<T, 6>};
    products[rows - 1](depth, a, a_row, panel, total);
}

// Rows of W_hh read in turn where it is not packed: memory gives several sooner than one.
constexpr int STREAMS = LANES < 8 ? LANES : 8;

// Dot products of ROWS rows with x; a row begins `row` numbers after the one before.
template <int ROWS>
void dots(const float* x, const float* rows, int64_t row, int64_t n, float* out) {
    Vec total[ROWS];
    for (int i = 0; i < ROWS; ++i) total[i] = Vec{};
    const int64_t whole = n / LANES * LANES;
    for (int64_t k = 0; k < whole; k += LANES)
        for (int i = 0; i < ROWS; ++i) total[i] += load(rows + i * row + k) * load(x + k);
    for (int i = 0; whole < n && i < ROWS; ++i)
        total[i] += load_some(rows + i * row + whole, n - whole) * load_some(x + whole, n - whole);
    for (int i = 0; i < ROWS; ++i) out[i] = sum(total[i]);
}

template <class T>
class Recurrence {
  public:
    explicit Recurrence(const LSTM& call) : call_(call), all_threads_(call.threads), status_(DONE) {
        if constexpr (ROUNDS) {
            hidden_ = call.rounded_hidden;
            d_gates_ = call.rounded_d_gates;
        } else {
            hidden_ = call.hidden;
            d_gates_ = call.d_gates;
        }
        words_ = (call.size + TERMS<T> - 1) / TERMS<T>;
        units_ = (call.size + LANES - 1) / LANES;
        blocks_ = (call.size + PANEL - 1) / PANEL;
        most_ = call.steps ? call.batch_sizes[0] : 0;
        use_threads(most_);
    }

    int forward() {
        // A single sequence reads every weight once a step: to pack them first would cost more than it saves, unless
        // they are rounded, too.
        float* packed = nullptr;
        if (call_.steps > 1 && (most_ > 1 || ROUNDS)) {
            packed = call_scratch.take(units_ * words_ * PANEL, status_);
            if (status_ != DONE) return status_;
            for_each(call_, units_, 1, [&](int64_t unit) { pack_units(unit, packed + unit * words_ * PANEL); });
            if (status_ != DONE) return status_;
        }
        for (int64_t t = 0, begin = 0; t < call_.steps; begin += call_.batch_sizes[t++]) {
            const int64_t alive = call_.batch_sizes[t], before = t ? begin - call_.batch_sizes[t - 1] : -1;
            use_threads(alive);
            for_each(call_, units_, 1, [&](int64_t task) {
                // To and fro: much of what was read last in a step is still in the core's cache for the next.
                const int64_t unit = t % 2 ? units_ - 1 - task : task;
                forward_units(unit, begin, before, alive, packed ? packed + unit * words_ * PANEL : nullptr);
            });
        }
        return status_;
    }

    int backward() {
        const int64_t weights = blocks_ * panel_size();
        float* packed = call_scratch.take(weights + most_ * call_.size, status_);
        if (status_ != DONE) return status_;
        float* d_cells = packed + weights;  // of the step after, (most, d)
        for_each(call_, blocks_, 1, [&](int64_t block) { pack_columns(block, packed); });
        int64_t begin = 0, after = 0;  // after: sequences that have a later step
        for (int64_t t = 0; t < call_.steps; ++t) begin += call_.batch_sizes[t];
        for (int64_t t = call_.steps - 1; t >= 0; after = call_.batch_sizes[t--]) {
            const int64_t alive = call_.batch_sizes[t], row_groups = (alive + GROUP - 1) / GROUP;
            begin -= alive;
            use_threads(alive);
            for_each(call_, blocks_ * row_groups, 1, [&](int64_t task) {
                const int64_t first = task % row_groups * GROUP;
                backward_units(task / row_groups, t, begin, first, std::min(first + GROUP, alive), alive, after, packed,
                               d_cells);
            });
        }
        return status_;
    }

  private:
    static constexpr bool ROUNDS = std::is_same_v<T, BFloat16>;
    static constexpr int64_t GROUP = 4 * ROWS;       // sequences of a task
    static constexpr int64_t LEAST_WORK = 1 << 18;  // multiply-adds of a step that are worth waking a thread up for

    void use_threads(int64_t alive) {
        call_.threads = threads_for(all_threads_, alive * GATES * call_.size * call_.size / LEAST_WORK);
    }

    // Of W_hh's 4d rows and PANEL columns, packed.
    int64_t panel_size() const { return GATES * call_.size / TERMS<T> * PANEL; }

    // Rows of W_hh of a vector of units, transposed: (d, gates x LANES), the terms of d in words.
    void pack_units(int64_t unit, float* to) {
        float* columns = thread_scratch.take(call_.size * LANES, status_);
        if (columns == nullptr) return;
        const int64_t first = unit * LANES, n = std::min<int64_t>(LANES, call_.size - first);
        for (int64_t gate = 0; gate < GATES; ++gate) {
            transpose(columns, LANES, call_.weight + (gate * call_.size + first) * call_.weight_stride,
                      call_.weight_stride, n, call_.size);
            for (int64_t k = 0; k < words_; ++k) {
                const float* row = columns + k * TERMS<T> * LANES;
                Vec word = load(row);
                if constexpr (ROUNDS) word = words(word, 2 * k + 1 < call_.size ? load(row + LANES) : Vec{});
                store(to + k * PANEL + gate * LANES, word);
            }
        }
    }

    // PANEL columns of W_hh: (4d, PANEL), the terms of 4d in words.
    void pack_columns(int64_t block, float* packed) const {
        float* to = packed + block * panel_size();
        for (int64_t k = 0; k < GATES * call_.size; k += TERMS<T>) {
            const float* row = call_.weight + k * call_.weight_stride;
            for (int64_t j = block * PANEL; j < (block + 1) * PANEL; j += LANES, to += LANES) {
                const int64_t n = call_.size - j;
                Vec word{};
                if (n > 0) {
                    word = load_some(row + j, n);
                    if constexpr (ROUNDS) word = words(word, load_some(row + call_.weight_stride + j, n));
                }
                store(to, word);
            }
        }
    }

    // What a panel's product with the hidden state h gives, from W_hh as it lies.
    void row_product(int64_t unit, const float* h, Vec* total) const {
        const int64_t first = unit * LANES, n = std::min<int64_t>(LANES, call_.size - first);
        for (int64_t gate = 0; gate < GATES; ++gate) {
            float lanes[LANES] = {};
            const float* row = call_.weight + (gate * call_.size + first) * call_.weight_stride;
            int64_t i = 0;
            for (; i + STREAMS <= n; i += STREAMS)
                dots<STREAMS>(h, row + i * call_.weight_stride, call_.weight_stride, call_.size, lanes + i);
            for (; i < n; ++i) dots<1>(h, row + i * call_.weight_stride, 0, call_.size, lanes + i);
            total[gate] = load(lanes);
        }
    }

    // A vector of units of all sequences of a step: gates, cell, hidden state. Rows from `begin` on; the same sequences'
    // step before lies from `before` on, or nowhere (-1). Without a panel there is one sequence.
    void forward_units(int64_t unit, int64_t begin, int64_t before, int64_t alive, const float* panel) const {
        const int64_t size = call_.size, first = unit * LANES, n = std::min<int64_t>(LANES, size - first);
        const int64_t parts = (alive + ROWS - 1) / ROWS;
        for (int64_t part = 0; part < parts; ++part) {
            const int64_t i = alive * part / parts, rows = alive * (part + 1) / parts - i;
            Vec total[ROWS][GATES] = {};
            if (before >= 0 && panel == nullptr)
                row_product(unit, call_.hidden + before * size, total[0]);
            else if (before >= 0)
                panel_product(rows, words_, hidden_ + (before + i) * words_ * TERMS<T>, words_ * TERMS<T>, panel,
                              total);
            for (int64_t r = 0; r < rows; ++r) {
                const int64_t row = begin + i + r;
                float* gates = call_.gates + row * GATES * size + first;
                Vec gate[GATES];
                for (int j = 0; j < GATES; ++j) {
                    const Vec z = total[r][j] + load_some(gates + j * size, n);
                    gate[j] = j == 2 ? tanh(z) : sigmoid(z);
                    store_some(gates + j * size, gate[j], n);
                }
                Vec cell = gate[0] * gate[2];
                if (before >= 0) cell += gate[1] * load_some(call_.cells + (before + i + r) * size + first, n);
                store_some(call_.cells + row * size + first, cell, n);
                const Vec hidden = gate[3] * tanh(cell);
                store_some(call_.hidden + row * size + first, hidden, n);
                if constexpr (ROUNDS) store_some(hidden_ + row * words_ * TERMS<T> + first, hidden, n);
            }
        }
    }

    // PANEL units of the sequences first, ..., end - 1 of step t: what the later step sends back, then the gates'
    // gradients. The first `after` sequences have a later step, whose rows follow this step's `alive`.
    void backward_units(int64_t block, int64_t t, int64_t begin, int64_t first, int64_t end, int64_t alive,
                        int64_t after, const float* packed, float* d_cells) const {
        const int64_t size = call_.size, column = block * PANEL;
        const float* panel = packed + block * panel_size();
        for (int64_t i = first, rows; i < end; i += rows) {
            // Rows with a later step and rows without one are not mixed in a product.
            const bool later = i < after;
            rows = std::min<int64_t>(ROWS, (later ? std::min(after, end) : end) - i);
            Vec total[ROWS][GATES] = {};
            if (later)
                panel_product(rows, GATES * size / TERMS<T>, d_gates_ + (begin + alive + i) * GATES * size,
                              GATES * size, panel, total);
            for (int64_t r = 0; r < rows; ++r)
                for (int v = 0; v < GATES && column + v * LANES < size; ++v)
                    backward_vector(t, begin + i + r, i + r, column + v * LANES, later, total[r][v], d_cells);
        }
    }

    // A vector of units of one row: d_h from the later step in, gradients of the gates and of the cell before out.
    void backward_vector(int64_t t, int64_t row, int64_t sequence, int64_t unit, bool later, Vec d_h,
                         float* d_cells) const {
        const int64_t size = call_.size, n = std::min<int64_t>(LANES, size - unit);
        const float* gates = call_.gates + row * GATES * size + unit;
        const Vec i = load_some(gates, n), f = load_some(gates + size, n);
        const Vec g = load_some(gates + 2 * size, n), o = load_some(gates + 3 * size, n);
        const Vec tanh_c = tanh(load_some(call_.cells + row * size + unit, n));
        d_h += load_some(call_.d_hidden + row * size + unit, n);
        Vec d_c = d_h * o * (1.0f - tanh_c * tanh_c);
        float* carried = d_cells + sequence * size + unit;
        if (later) d_c += load_some(carried, n);
        Vec d_f{};
        if (t) {
            const int64_t before = row - call_.batch_sizes[t - 1];
            d_f = d_c * load_some(call_.cells + before * size + unit, n) * (f - f * f);
            store_some(carried, d_c * f, n);
        }
        const Vec d_gates[GATES] = {d_c * g * (i - i * i), d_f, d_c * i * (1.0f - g * g), d_h * tanh_c * (o - o * o)};
        for (int64_t j = 0; j < GATES; ++j) {
            const int64_t at = row * GATES * size + j * size + unit;
            store_some(call_.d_gates + at, d_gates[j], n);
            if constexpr (ROUNDS) store_some(d_gates_ + at, d_gates[j], n);
        }
    }

    LSTM call_;
    int64_t all_threads_;
    T *hidden_, *d_gates_;  // operands: the call's, or what is rounded
    int64_t words_;         // of d terms
    int64_t units_, blocks_, most_;  // most sequences of a step
    std::atomic<int> status_;
};

}  // namespace

extern "C" {

int lstm_forward(const LSTM* call) {
    const int status = call->rounded_hidden ? Recurrence<BFloat16>(*call).forward() : Recurrence<float>(*call).forward();
    call_scratch.release_above(MOST_KEPT);
    return status;
}

int lstm_backward(const LSTM* call) {
    const int status =
        call->rounded_d_gates ? Recurrence<BFloat16>(*call).backward() : Recurrence<float>(*call).backward();
    call_scratch.release_above(MOST_KEPT);
    return status;
}
}
