// What the contrastive loss (Eq. 17-19, 23) does besides its products, in float32: rows are normalised; a tile of cosines
// between two modalities gives the log-sum-exps of its rows and columns and the targets' share in one reading, then its
// gradient; and gradients of normalised rows become those of the rows.
//
// With s_ij = cosine_ij / tau, both directions of a pair have the gradient
// G_ij = exp(s_ij - rowlse_i) + exp(s_ij - collse_j) - (t_ij + t_ji); t_ij + t_ji = weight_i + weight_j where the labels
// are related, and 2 t_ii on the diagonal. Tiles of several pairs share rows, columns and so the targets.
// Sums go by blocks of rows of a fixed size: results do not depend on the number of threads.

#include "common.h"

#include <limits>

extern "C" {

struct Contrastive {
    int64_t tiles, rows, columns;
    float* cosines;  // (tiles, rows, columns); the gradient takes their place
    double temperature;
    const void *own_labels, *labels;  // of the rows and of the columns; null: only the diagonal is related
    int64_t label_type;               // 0: float, 1: double, 2: int64, where equal labels are related
    double reach;                     // by which related scores differ at most
    const float *own_weights, *weights;
    const float* diagonal;      // t_ii of each row
    int64_t shift;              // the column of row 0 where both are one example
    float* row_lse;             // (tiles, rows)
    int64_t row_stride;         // from one tile to the next; of the attraction, too
    float* column_lse;          // (tiles, columns)
    int64_t column_stride;
    float* attraction;          // (tiles, rows): sum over columns of (t_ij + t_ji) s_ij
    int64_t threads;
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel; null = one thread
};
static_assert(sizeof(Contrastive) == 20 * 8, "contrastive_call.py lays it out");

struct Rows {
    int64_t modalities, rows, size;
    const float* embeddings[3];  // each (rows, size)
    int64_t strides[3];          // of their rows
    float* normalised;           // (modalities, rows, size), contiguous
    float* inverse_norms;        // (modalities, rows)
    float* gradients[3];         // each (rows, size), contiguous: of the normalised rows, then of the rows
    float* radial;               // (modalities, rows): <normalised row, its gradient>
    double scale;                // of the gradients
    int64_t threads;
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned);
};
static_assert(sizeof(Rows) == 18 * 8, "contrastive_call.py lays it out");
}

namespace {

constexpr int64_t BLOCK = 32;            // rows of a task
constexpr int64_t TOGETHER = 8;          // rows whose columns' sums are updated together
constexpr int64_t LEAST_WORK = 1 << 14;  // elements that are worth waking a thread up for
constexpr float INFINITE = std::numeric_limits<float>::infinity();
constexpr double EPSILON = 1e-12;  // torch.nn.functional.normalize's

class Run {
  public:
    explicit Run(const Contrastive& call)
        : call_(call), width_(padded(call.columns)), temperature_(static_cast<float>(call.temperature)), status_(DONE) {
        call_.threads = threads_for(call.threads, call.tiles * call.rows * call.columns / LEAST_WORK);
    }

    int statistics() {
        const int64_t blocks = (call_.rows + BLOCK - 1) / BLOCK, columns = call_.columns, stripe = 16 * LANES;
        float* of_blocks = call_scratch.take(call_.tiles * blocks * columns, status_);  // (tiles, blocks, columns)
        if (of_blocks == nullptr) return status_;
        for_each(call_, blocks, 1, [&](int64_t block) { statistics(block, of_blocks + block * columns, blocks * columns); });
        if (status_ != DONE) return status_;
        const int64_t stripes = (columns + stripe - 1) / stripe;
        for_each(call_, call_.tiles * stripes, 1, [&](int64_t task) {
            const int64_t tile = task / stripes, j = task % stripes * stripe, n = std::min(stripe, columns - j);
            merge(of_blocks + tile * blocks * columns + j, blocks, n, call_.column_lse + tile * call_.column_stride + j);
        });
        call_scratch.release_above(MOST_KEPT);
        return status_;
    }

    int gradients() {
        for_each(call_, (call_.rows + TOGETHER - 1) / TOGETHER, 1, [&](int64_t task) {
            float* targets = thread_scratch.take(width_, status_);
            if (targets == nullptr) return;
            const int64_t first = task * TOGETHER, last = std::min(call_.rows, first + TOGETHER);
            for (int64_t i = first; i < last; ++i) {
                fill_targets(i, targets);
                for (int64_t tile = 0; tile < call_.tiles; ++tile) gradients_of_row(tile, i, targets);
            }
        });
        return status_;
    }

  private:
    float* cosines(int64_t tile, int64_t row) const {
        return call_.cosines + (tile * call_.rows + row) * call_.columns;
    }

    // body(column, how many, how a vector of them is loaded from a row of numbers) for each vector of columns. The
    // partial last vector is handled separately, so that the main loop has no branches.
    template <class Body>
    void for_each_vector(const Body& body) const {
        const int64_t whole = call_.columns / LANES * LANES, rest = call_.columns - whole;
        for (int64_t j = 0; j < whole; j += LANES) body(j, LANES, [](const float* x) { return load(x); });
        if (rest) body(whole, rest, [rest](const float* x) { return load_some(x, rest); });
    }

    // t_ij + t_ji of row i, and 0 in the lanes beyond it.
    void fill_targets(int64_t i, float* targets) const {
        std::fill(targets, targets + width_, 0.0f);
        if (call_.labels != nullptr) {
            if (call_.label_type == 0)
                relate<float>(i, targets);
            else if (call_.label_type == 1)
                relate<double>(i, targets);
            else
                relate<int64_t>(i, targets);
        }
        const int64_t same = i + call_.shift;
        if (same >= 0 && same < call_.columns) targets[same] = 2 * call_.diagonal[i];
    }

    template <class Label>
    void relate(int64_t i, float* targets) const {
        const Label own = static_cast<const Label*>(call_.own_labels)[i];
        const Label* labels = static_cast<const Label*>(call_.labels);
        const Label reach = static_cast<Label>(call_.reach);
        const float weight = call_.own_weights[i];
        for (int64_t j = 0; j < call_.columns; ++j) {
            bool related;
            if constexpr (std::is_integral_v<Label>)
                related = own == labels[j];
            else
                related = std::abs(own - labels[j]) <= reach;
            targets[j] = related ? weight + call_.weights[j] : 0.0f;
        }
    }

    // `of_block`: where the columns' log-sum-exps of the first tile go; those of the next tile go `of_tile` further on.
    void statistics(int64_t block, float* of_block, int64_t of_tile) {
        const int64_t first = block * BLOCK, last = std::min(call_.rows, first + BLOCK);
        float* targets = thread_scratch.take((TOGETHER + 2 * call_.tiles) * width_, status_);
        if (targets == nullptr) return;
        float* tops = targets + TOGETHER * width_;  // of each tile's columns: the largest s, and the sum of exp(s - it)
        float* sums = tops + call_.tiles * width_;
        std::fill(tops, sums, -INFINITE);
        std::fill(sums, sums + call_.tiles * width_, 0.0f);
        for (int64_t i = first; i < last; i += TOGETHER) {
            const int64_t rows = std::min(TOGETHER, last - i);
            for (int64_t r = 0; r < rows; ++r) fill_targets(i + r, targets + r * width_);
            for (int64_t tile = 0; tile < call_.tiles; ++tile) {
                for (int64_t r = 0; r < rows; ++r) row_statistics(tile, i + r, targets + r * width_);
                column_statistics(cosines(tile, i), rows, tops + tile * width_, sums + tile * width_);
            }
        }
        for (int64_t tile = 0; tile < call_.tiles; ++tile) {
            float* to = of_block + tile * of_tile;
            for (int64_t j = 0; j < call_.columns; ++j)
                to[j] = tops[tile * width_ + j] + std::log(sums[tile * width_ + j]);
        }
    }

    // Log-sum-exps of n columns, at most a stripe, over the blocks.
    void merge(const float* of_blocks, int64_t blocks, int64_t n, float* to) const {
        for (int64_t j = 0; j < n; j += LANES) {
            const auto of = [&](int64_t block) { return load_some(of_blocks + block * call_.columns + j, n - j); };
            Vec top = of(0), total = Vec{};
            for (int64_t block = 1; block < blocks; ++block) top = maximum(of(block), top);
            for (int64_t block = 0; block < blocks; ++block) total += exponential(of(block) - top);
            for (int64_t l = 0; l < std::min<int64_t>(LANES, n - j); ++l) to[j + l] = top[l] + std::log(total[l]);
        }
    }

    void row_statistics(int64_t tile, int64_t i, const float* targets) {
        const float* row = cosines(tile, i);
        Vec most = splat(-INFINITE);
        for_each_vector([&](int64_t j, int64_t n, const auto& from) {
            const Vec s = from(row + j) / temperature_;
            most = maximum(n == LANES ? s : before(n) ? s : splat(-INFINITE), most);
        });
        const float top = largest(most);
        Vec total = Vec{}, attracted = Vec{};
        for_each_vector([&](int64_t j, int64_t n, const auto& from) {
            const Vec s = from(row + j) / temperature_, e = exponential(s - top);
            total += n == LANES ? e : before(n) ? e : Vec{};
            attracted += load(targets + j) * s;
        });
        call_.row_lse[tile * call_.row_stride + i] = top + std::log(sum(total));
        call_.attraction[tile * call_.row_stride + i] = sum(attracted);
    }

    void column_statistics(const float* row, int64_t rows, float* tops, float* sums) const {
        for_each_vector([&](int64_t j, int64_t, const auto& from) {
            const Vec last = load(tops + j);
            Vec most = last, s[TOGETHER];
            for (int64_t r = 0; r < rows; ++r) {
                s[r] = from(row + r * call_.columns + j) / temperature_;
                most = maximum(s[r], most);
            }
            Vec total = load(sums + j) * exponential(last - most);
            for (int64_t r = 0; r < rows; ++r) total += exponential(s[r] - most);
            store(tops + j, most);
            store(sums + j, total);
        });
    }

    void gradients_of_row(int64_t tile, int64_t i, const float* targets) const {
        float* row = cosines(tile, i);
        const float own = call_.row_lse[tile * call_.row_stride + i];
        const float* others = call_.column_lse + tile * call_.column_stride;
        for_each_vector([&](int64_t j, int64_t n, const auto& from) {
            const Vec s = from(row + j) / temperature_;
            const Vec g = exponential(s - own) + exponential(s - from(others + j)) - load(targets + j);
            if (n == LANES)
                store(row + j, g);
            else
                store_some(row + j, g, n);
        });
    }

    Contrastive call_;
    int64_t width_;
    float temperature_;
    std::atomic<int> status_;
};

// A row's sum of products.
float dot(const float* x, const float* y, int64_t n) {
    Vec total = Vec{};
    for (int64_t j = 0; j < n; j += LANES) total += load_some(x + j, n - j) * load_some(y + j, n - j);
    return sum(total);
}

// body(modality, row) for every row.
template <class Body>
int for_each_row(Rows call, const Body& body) {
    call.threads = threads_for(call.threads, call.modalities * call.rows * call.size / LEAST_WORK);
    for_each(call, call.modalities * call.rows, TOGETHER, [&](int64_t task) { body(task / call.rows, task % call.rows); });
    return DONE;
}

}  // namespace

// Fills `normalised` and `inverse_norms`: z / max(|z|, EPSILON).
extern "C" int contrastive_normalise(const Rows* call) {
    return for_each_row(*call, [&](int64_t modality, int64_t row) {
        const float* from = call->embeddings[modality] + row * call->strides[modality];
        const int64_t at = modality * call->rows + row, size = call->size;
        const float inverse = static_cast<float>(1 / std::max<double>(std::sqrt(dot(from, from, size)), EPSILON));
        call->inverse_norms[at] = inverse;
        float* to = call->normalised + at * size;
        for (int64_t j = 0; j < size; j += LANES) store_some(to + j, load_some(from + j, size - j) * inverse, size - j);
    });
}

// Gradients of normalised rows become those of the rows, times `scale`; fills `radial`.
extern "C" int contrastive_finish(const Rows* call) {
    return for_each_row(*call, [&](int64_t modality, int64_t row) {
        const int64_t at = modality * call->rows + row, size = call->size;
        const float* normalised = call->normalised + at * size;
        float* gradient = call->gradients[modality] + row * size;
        const float radial = dot(normalised, gradient, size), inverse = call->inverse_norms[at];
        call->radial[at] = radial;
        // A clamped norm is a constant: nothing flows through it.
        const float along = inverse < 0.9999 / EPSILON ? radial : 0, scale = static_cast<float>(call->scale) * inverse;
        for (int64_t j = 0; j < size; j += LANES) {
            const Vec g = load_some(gradient + j, size - j) - along * load_some(normalised + j, size - j);
            store_some(gradient + j, g * scale, size - j);
        }
    });
}

extern "C" int contrastive_statistics(const Contrastive* call) {
    return call->rows && call->columns ? Run(*call).statistics() : DONE;
}

extern "C" int contrastive_gradients(const Contrastive* call) {
    return call->rows && call->columns ? Run(*call).gradients() : DONE;
}
