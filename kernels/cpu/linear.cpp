// A matrix product of PyTorch's linear layer and of its gradients (y = x W^T + b, dx = dy W, dW = dy^T x), from operands
// as they lie: either dimension may have the unit stride, and each operand is float32 or bfloat16.
//
// A task owns some columns of C and packs their panel of B piece by piece, which costs a few percent of the product;
// rows of A are read in place unless they have to be rounded or transposed first. With few rows the sides change: panels
// of A's transpose are packed, and B, the weight, is read in place once, as fast as memory gives it.
// An element of C is added up in the same order either way: results depend neither on the number of rows nor on threads.

#include "linear.h"

#include "product.h"

namespace {

constexpr int64_t WIDTH = MAX_VECTORS * LANES;  // of a panel
constexpr int64_t FEW = 64;                     // rows up to which A is packed, not B
constexpr int64_t TILES = 7;  // of a task then; of an even number, rows of 768 floats would share few sets of the cache
constexpr int64_t LEAST_ROWS = 96, MOST_ROWS = 1024;  // of a task; fewer and packing costs too much
constexpr int64_t MOST_COPIED = 4 << 20;              // words of A that are copied at a time
constexpr int64_t LEAST_WORK = 1 << 18;               // multiply-adds that are worth waking a thread up for

template <class T>
class Run {
  public:
    explicit Run(const Product& call)
        : call_(call),
          words_((call.depth + TERMS<T> - 1) / TERMS<T>),
          pieces_(std::max<int64_t>(1, (words_ + DEPTH - 1) / DEPTH)),
          chunk_(TILES * most_rows(static_cast<int>(std::min(WIDTH, padded(call.m)) / LANES))),
          status_(DONE) {
        call_.threads = threads_for(call.threads, call.m * call.n * call.depth / LEAST_WORK);
    }

    static bool has_few_rows(const Product& call) { return call.m <= FEW && call.b.column == 1; }

    // Products of the same few rows A: packed once, and threads are woken up once.
    static int few_rows(const Product* calls, int64_t count) {
        Product all = calls[0];  // with every call's columns: their work decides how many threads
        for (int64_t i = 1; i < count; ++i) all.n += calls[i].n;
        Run run(all);
        float* packed = call_scratch.take(run.words_ * padded(all.m) + 1, run.status_);  // 1: of depth 0, too
        if (packed == nullptr) return run.status_;
        run.for_each_panel([&](int64_t row, int64_t rows, int64_t width) {
            run.pack(all.a, row, rows, 0, run.words_, width, packed + row * run.words_);
        });
        const auto chunks = [&](const Product& call) { return (call.n + run.chunk_ - 1) / run.chunk_; };
        int64_t tasks = 0;
        for (int64_t i = 0; i < count; ++i) tasks += chunks(calls[i]);
        for_each(run.call_, tasks, 1, [&](int64_t task) {
            const Product* call = calls;
            for (; task >= chunks(*call); ++call) task -= chunks(*call);
            Run of_call(*call);
            of_call.chunk(task * run.chunk_, packed);
            if (of_call.status_ != DONE) run.status_ = of_call.status_.load();
        });
        return run.status_;
    }

    int run() {
        if (!copied(call_.a)) {
            columns(static_cast<const T*>(call_.a.data), call_.a.row, 0, call_.m);
            return status_;
        }
        const int64_t most = std::max<int64_t>(LEAST_ROWS, MOST_COPIED / std::max<int64_t>(words_, 1));
        for (int64_t begin = 0; begin < call_.m && status_ == DONE; begin += most) {
            const int64_t end = std::min(begin + most, call_.m);
            float* rows = call_scratch.take((end - begin) * words_ + 1, status_);
            if (rows == nullptr) break;
            for_each(call_, (end - begin + LANES - 1) / LANES, 1, [&](int64_t block) {
                const int64_t first = block * LANES;
                copy_rows(call_.a, begin + first, std::min<int64_t>(LANES, end - begin - first), rows + first * words_);
            });
            columns(reinterpret_cast<const T*>(rows), words_ * TERMS<T>, begin, end);
        }
        return status_;
    }

  private:
    static constexpr bool ROUNDS = std::is_same_v<T, BFloat16>;

    int64_t piece(int64_t index) const { return words_ * index / pieces_; }

    // Whether an operand's rows are not rows of whole words as they lie.
    bool copied(const Operand& x) const {
        return x.column != 1 || (x.bfloat16 != 0) != ROUNDS || call_.depth % TERMS<T>;
    }

    template <class Body>
    static void with_data(const Operand& x, const Body& body) {
        if (x.bfloat16)
            body(static_cast<const BFloat16*>(x.data));
        else
            body(static_cast<const float*>(x.data));
    }

    // n rows of an operand, at most LANES, from `first` on, as rows of words.
    void copy_rows(const Operand& x, int64_t first, int64_t n, float* to) const {
        with_data(x, [&](auto* data) {
            for (int64_t k = 0; k < words_; k += LANES) {
                Vec v[LANES];
                if (x.column == 1) {
                    const int64_t term = k * TERMS<T>;
                    for (int64_t i = 0; i < n; ++i)
                        v[i] = load_words<T>(data + (first + i) * x.row + term, call_.depth - term);
                } else {
                    for (int64_t w = 0; w < LANES; ++w) v[w] = across(x, data, first, n, k + w);
                    transpose(v);
                }
                for (int64_t i = 0; i < n; ++i) store_some(to + i * words_ + k, v[i], words_ - k);
            }
        });
    }

    // Word k of n rows, at most LANES.
    template <class S>
    Vec across(const Operand& x, const S* data, int64_t first, int64_t n, int64_t k) const {
        const int64_t term = k * TERMS<T>;
        if (term >= call_.depth || n <= 0) return Vec{};
        return load_across<T>(data + first + term * x.column, x.column, call_.depth - term, n);
    }

    // Words begin, ..., end - 1 of n rows of an operand from `first` on, transposed: (words, width), the rest 0.
    void pack(const Operand& x, int64_t first, int64_t n, int64_t begin, int64_t end, int64_t width, float* to) const {
        with_data(x, [&](auto* data) {
            for (int64_t j = 0; j < width; j += LANES) {
                if (x.column != 1) {
                    for (int64_t k = begin; k < end; ++k)
                        store(to + (k - begin) * width + j, across(x, data, first + j, std::min<int64_t>(n - j, LANES), k));
                    continue;
                }
                const int64_t rows = std::min<int64_t>(n - j, LANES), last = std::min(call_.depth, end * TERMS<T>);
                for (int64_t k = begin; k < end; k += LANES) {
                    Vec v[LANES] = {};
                    for (int64_t i = 0; i < rows; ++i)
                        v[i] = load_words<T>(data + (first + j + i) * x.row + k * TERMS<T>, last - k * TERMS<T>);
                    transpose(v);
                    for (int64_t w = 0; w < LANES && k + w < end; ++w) store(to + (k + w - begin) * width + j, v[w]);
                }
            }
        });
    }

    // Rows begin, ..., end - 1 of C; `a` is the first of as many rows of words.
    void columns(const T* a, int64_t a_row, int64_t begin, int64_t end) {
        const int64_t panels = (call_.n + WIDTH - 1) / WIDTH, rows = end - begin;
        int64_t parts = (rows + MOST_ROWS - 1) / MOST_ROWS;
        while (call_.threads > 1 && parts * panels < 2 * call_.threads && rows / (parts + 1) >= LEAST_ROWS) ++parts;
        for_each(call_, panels * parts, 1, [&](int64_t task) {
            const int64_t part = task % parts, first = rows * part / parts;
            panel(task / parts * WIDTH, a + first * a_row, a_row, begin + first, begin + rows * (part + 1) / parts);
        });
    }

    // A panel's columns of C, some rows.
    void panel(int64_t column, const T* a, int64_t a_row, int64_t begin, int64_t end) {
        const int64_t n = std::min(WIDTH, call_.n - column), vectors = (n + LANES - 1) / LANES, width = vectors * LANES;
        const int64_t most = most_rows(static_cast<int>(vectors)), blocks = (end - begin + most - 1) / most;
        const int64_t longest = (words_ + pieces_ - 1) / pieces_;
        const bool direct = !call_.out_bfloat16 && n == width;  // sums of pieces lie in C itself
        float* packed = thread_scratch.take((longest + 1 + (direct ? 0 : end - begin)) * width, status_);
        if (packed == nullptr) return;
        float* bias = packed + longest * width;
        for (int64_t j = 0; j < width; ++j) bias[j] = call_.bias && j < n ? call_.bias[column + j] : 0;
        float* c = direct ? static_cast<float*>(call_.out) + begin * call_.out_row + column : bias + width;
        const int64_t c_row = direct ? call_.out_row : width;
        for (int64_t p = 0; p < pieces_; ++p) {
            const int64_t k = piece(p), depth = piece(p + 1) - k;
            pack(call_.b, column, n, k, k + depth, width, packed);
            for (int64_t block = 0; block < blocks; ++block) {
                const int64_t i = (end - begin) * block / blocks, rows = (end - begin) * (block + 1) / blocks - i;
                float* to = c + i * c_row;
                tile_of<T, false>(rows, vectors)(depth, a + i * a_row + k * TERMS<T>, a_row, packed, p ? to : bias,
                                                 p ? c_row : 0, to, c_row);
            }
        }
        if (call_.gelu)
            for (int64_t i = 0; i < end - begin; ++i) activate(c + i * c_row, width);
        if (!direct)
            for (int64_t i = begin; i < end; ++i) put(i, column, c + (i - begin) * width, n);
    }

    // n floats, whole vectors.
    static void activate(float* x, int64_t n) {
        for (int64_t j = 0; j < n; j += LANES) store(x + j, gelu(load(x + j)));
    }

    // n floats of a row of C, in memory whole vectors.
    void put(int64_t row, int64_t column, const float* from, int64_t n) const {
        const int64_t at = row * call_.out_row + column;
        for (int64_t j = 0; j < n; j += LANES) {
            if (call_.out_bfloat16)
                store_some(static_cast<BFloat16*>(call_.out) + at + j, load(from + j), n - j);
            else
                store_some(static_cast<float*>(call_.out) + at + j, load(from + j), n - j);
        }
    }

    // body(first row, rows, width) for each panel of A's transpose.
    template <class Body>
    void for_each_panel(const Body& body) const {
        for (int64_t row = 0; row < call_.m; row += WIDTH) {
            const int64_t rows = std::min(WIDTH, call_.m - row);
            body(row, rows, padded(rows));
        }
    }

    // A chunk's columns of C from the panels of A's transpose.
    void chunk(int64_t first, const float* packed) {
        const int64_t n = std::min(chunk_, call_.n - first), columns = padded(call_.m);
        float* c = thread_scratch.take(chunk_ * columns + (copied(call_.b) ? TILE_ROWS * words_ : 0), status_);
        if (c == nullptr) return;
        transposed_chunk(first, n, packed, c, c + chunk_ * columns);
        for_each_panel([&](int64_t row, int64_t rows, int64_t width) {
            if (call_.gelu) activate(c + row * chunk_, n * width);
            put_transposed(row, rows, first, n, c + row * chunk_, width);
        });
    }

    // C^T of n rows of B, each panel's (n, width) chunk_ * width after the last one's, from the panels of A's transpose.
    // A tile takes rows that lie apart, each the begin of a run that the next tiles continue: the CPU fetches long runs
    // ahead.
    void transposed_chunk(int64_t first, int64_t n, const float* packed, float* c, float* copies) const {
        const int64_t most = chunk_ / TILES, tiles = (n + most - 1) / most;
        for (int64_t i = 0; i < tiles; ++i) {
            const int64_t rows = (n - i + tiles - 1) / tiles;
            Operand of_tile = call_.b;
            with_data(call_.b, [&](auto* x) { of_tile.data = x + (first + i) * call_.b.row; });
            of_tile.row *= tiles;
            const T* b = static_cast<const T*>(of_tile.data);
            int64_t b_row = of_tile.row;
            if (copied(call_.b)) {
                for (int64_t r = 0; r < rows; r += LANES)
                    copy_rows(of_tile, r, std::min<int64_t>(LANES, rows - r), copies + r * words_);
                b = reinterpret_cast<const T*>(copies);
                b_row = words_ * TERMS<T>;
            }
            float bias[TILE_ROWS][WIDTH];
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t j = 0; j < WIDTH; j += LANES)
                    store(bias[r] + j, splat(call_.bias ? call_.bias[first + i + r * tiles] : 0.0f));
            for_each_panel([&](int64_t row, int64_t, int64_t width) {
                const auto product = row || copied(call_.b) ? tile_of<T, false>(rows, width / LANES)
                                                            : tile_of<T, true>(rows, width / LANES);
                float* to = c + row * chunk_ + i * width;
                for (int64_t p = 0; p < pieces_; ++p) {
                    const int64_t k = piece(p);
                    product(piece(p + 1) - k, b + k * TERMS<T>, b_row, packed + row * words_ + k * width,
                            p ? to : bias[0], p ? tiles * width : WIDTH, to, tiles * width);
                }
            });
        }
    }

    // C's block of some rows and of columns first, ..., first + n - 1, from its transpose (n, width).
    void put_transposed(int64_t row, int64_t rows, int64_t first, int64_t n, const float* from, int64_t width) const {
        for (int64_t j = 0; j < n; j += LANES)
            for (int64_t i = 0; i < rows; i += LANES) {
                Vec v[LANES] = {};
                for (int64_t r = 0; r < LANES && j + r < n; ++r) v[r] = load(from + (j + r) * width + i);
                transpose(v);
                for (int64_t r = 0; r < LANES && i + r < rows; ++r) {
                    float lanes[LANES];
                    store(lanes, v[r]);
                    put(row + i + r, first + j, lanes, std::min<int64_t>(LANES, n - j));
                }
            }
    }

    Product call_;
    int64_t words_, pieces_;
    int64_t chunk_;  // rows of B of a task where A has few
    std::atomic<int> status_;
};

template <class T>
int products(const Product* calls, int64_t count) {
    if (std::all_of(calls, calls + count, Run<T>::has_few_rows)) return Run<T>::few_rows(calls, count);
    int status = DONE;
    for (int64_t i = 0; i < count && status == DONE; ++i) status = Run<T>(calls[i]).run();
    return status;
}

}  // namespace

extern "C" int matrix_products(const Product* calls, int64_t count) {
    const int status = calls->rounds ? products<BFloat16>(calls, count) : products<float>(calls, count);
    call_scratch.release_above(MOST_KEPT);
    return status;
}

extern "C" int matrix_product(const Product* call) { return call->m && call->n ? matrix_products(call, 1) : DONE; }
