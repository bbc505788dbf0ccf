// One token of every row, or several, through a Llama or Qwen3 in one call; compiled and called by native.py.
//
// With few tokens, a step is bound by the time to read the weights once. So the weights are read in place and in torch's
// order, each thread reads one contiguous part, and the inputs of all tokens stay in the caches. Sums are in float32, and
// a token's sums are computed in the same order whatever other tokens are in the call: its logits are the same to the
// last bit. fixed_point.py relies on this.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef __SSE__
#include <immintrin.h>
#endif

// native.py declares the same three structs. A missing bias or norm is null.
struct Linear {
    const void *weight, *bias;  // (outputs, inputs), (outputs)
    int64_t inputs, outputs;
};

struct Layer {
    const void *attention_norm, *query_norm, *key_norm, *feed_norm;
    Linear query, key, value, out, gate, up, down;
    void *keys, *values;  // (rows, key_heads, places, head_size) each
};

struct Model {
    int64_t threads, width, inner, heads, key_heads, head_size, places, num_layers;
    float epsilon, scaling;
    const void *embedding, *norm;
    const int64_t *starts;  // of each row: the first place of each row that is not padding
    Layer *layers;
};

struct bf16 {
    uint16_t bits;
};

typedef float Lanes __attribute__((vector_size(64)));  // 16 numbers

// The processor's own vectors, in which products are summed: a compiler keeps wider ones in memory, at a tenth of the
// speed. PARTS of them hold the 16 lanes of a sum, so that sums are the same for any width.
#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif
typedef float Vector __attribute__((vector_size(VECTOR_BYTES)));
constexpr int PARTS = 64 / VECTOR_BYTES, NUMBERS = VECTOR_BYTES / 4;

static inline float number(float x) { return x; }

static inline float number(bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float result;
    memcpy(&result, &bits, 4);
    return result;
}

static inline void round_to(float x, float &result) { result = x; }

static inline void round_to(float x, bf16 &result) {  // to the nearest, ties to even, as torch does
    uint32_t bits;
    memcpy(&bits, &x, 4);
    result.bits = x != x ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

static inline Lanes lanes(const float *x) {
    Lanes result;
    memcpy(&result, x, 64);
    return result;
}

static inline Lanes lanes(const bf16 *x) {
    typedef uint16_t Shorts __attribute__((vector_size(32)));
    typedef uint32_t Words __attribute__((vector_size(64)));
    Shorts shorts;
    memcpy(&shorts, x, 32);
    return (Lanes)(__builtin_convertvector(shorts, Words) << 16);
}

typedef float Quarter __attribute__((vector_size(16)));

static inline Quarter quarter_sums(Lanes x) {
    typedef float Half __attribute__((vector_size(32)));
    Half half[2];
    memcpy(half, &x, 64);
    half[0] += half[1];
    Quarter quarter[2];
    memcpy(quarter, half, 32);
    return quarter[0] + quarter[1];
}

static inline float total(Lanes x) {
    Quarter quarter = quarter_sums(x);
    return (quarter[0] + quarter[1]) + (quarter[2] + quarter[3]);
}

// The totals of four sums, each added up as `total` does.
static inline void totals(const Lanes *x, float *result) {
#ifdef __SSE__
    __m128 a = quarter_sums(x[0]), b = quarter_sums(x[1]), c = quarter_sums(x[2]), d = quarter_sums(x[3]);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(result, (a + b) + (c + d));
#else
    for (int i = 0; i < 4; ++i) result[i] = total(x[i]);
#endif
}

static inline Vector vector_of(const float *x) {
    Vector result;
    memcpy(&result, x, VECTOR_BYTES);
    return result;
}

static inline Vector vector_of(const bf16 *x) {
    typedef uint16_t Shorts __attribute__((vector_size(VECTOR_BYTES / 2)));
    typedef uint32_t Words __attribute__((vector_size(VECTOR_BYTES)));
    Shorts shorts;
    memcpy(&shorts, x, VECTOR_BYTES / 2);
    return (Vector)(__builtin_convertvector(shorts, Words) << 16);
}

// sum += a b, for the number of elements that one step takes.
template <class A, class B> constexpr int64_t step_of = 16;

template <int O, int R, class A, class B>
static inline void multiply_add(Vector (&sum)[O][R][PARTS], const A *a, const B *b, int64_t size) {
#pragma GCC unroll 4
    for (int part = 0; part < PARTS; ++part) {
        Vector left[O], right[R];
#pragma GCC unroll 4
        for (int o = 0; o < O; ++o) left[o] = vector_of(a + o * size + part * NUMBERS);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) right[r] = vector_of(b + r * size + part * NUMBERS);
#pragma GCC unroll 4
        for (int o = 0; o < O; ++o)
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) sum[o][r][part] += left[o] * right[r];
    }
}

#ifdef __AVX512BF16__
template <> constexpr int64_t step_of<bf16, bf16> = 32;

template <int O, int R>
static inline void multiply_add(Vector (&sum)[O][R][PARTS], const bf16 *a, const bf16 *b, int64_t size) {
#pragma GCC unroll 4
    for (int o = 0; o < O; ++o)
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            __m512bh left, right;
            memcpy(&left, a + o * size, 64);
            memcpy(&right, b + r * size, 64);
            sum[o][r][0] = (Vector)_mm512_dpbf16_ps((__m512)sum[o][r][0], left, right);
        }
}
#endif

// sums[o][r] = a[o] . b[r], for O rows of a and R rows of b, each `size` long. For each 64 bytes of a row, LINES of as
// many are fetched from `ahead`, for later: without, a core waits for the memory, and then the memory for the core.
template <int O, int R, int LINES = 0, class A, class B>
static inline void dots(const A *a, const B *b, int64_t size, float (&sums)[O][R], const A *ahead = nullptr) {
    Vector sum[O][R][PARTS] = {};
    int64_t i = 0;
    for (; i + step_of<A, B> <= size; i += step_of<A, B>) {
        if (i * sizeof(A) % 64 == 0)
#pragma GCC unroll 4
            for (int line = 0; line < LINES; ++line) __builtin_prefetch((const char *)(ahead + LINES * i) + 64 * line);
        multiply_add<O, R>(sum, a + i, b + i, size);
    }
#pragma GCC unroll 4
    for (int o = 0; o < O; ++o) {
        Lanes whole[R];
        memcpy(whole, sum[o], sizeof whole);
        if constexpr (R == 4)
            totals(whole, sums[o]);
        else
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) sums[o][r] = total(whole[r]);
    }
    for (; i < size; ++i)
        for (int o = 0; o < O; ++o)
            for (int r = 0; r < R; ++r)  // fma: a compiler may fuse in some of these loops and not in others
                sums[o][r] = __builtin_fmaf(number(a[o * size + i]), number(b[r * size + i]), sums[o][r]);
}

template <int O, int R, int LINES, class T, class Take>
static inline void block(const Linear &linear, const T *x, int64_t row, int64_t output, Take take,
                         const T *ahead = nullptr) {
    float sums[O][R];
    const T *weight = (const T *)linear.weight + output * linear.inputs;
    dots<O, R, LINES>(weight, x + row * linear.inputs, linear.inputs, sums, ahead);
    for (int o = 0; o < O; ++o)
        for (int r = 0; r < R; ++r)
            take(row + r, output + o, sums[o][r] + (linear.bias ? number(((const T *)linear.bias)[output + o]) : 0));
}

// Outputs that are computed together. Four read x less often, but all sums must fit the registers.
constexpr int GROUP = 4, TILE = PARTS == 1 ? GROUP : 1;

// Outputs first .. first + O - 1 of all rows. Meanwhile, those that come a GROUP later are fetched.
template <int O, class T, class Take>
static inline void tile(const Linear &linear, const T *x, int64_t rows, int64_t first, Take take) {
    const T *ahead = (const T *)linear.weight + (first + GROUP) * linear.inputs;
    int64_t row = 0;
    if (rows >= 8) {  // in two parts: the longer it takes, the less is waited for
        constexpr int half = (O + 1) / 2;
        block<O, 4, half>(linear, x, 0, first, take, ahead);
        block<O, 4, O - half>(linear, x, 4, first, take, ahead + half * linear.inputs);
        row = 8;
    } else if (rows >= 4) {
        block<O, 4, O>(linear, x, 0, first, take, ahead);
        row = 4;
    } else if (rows >= 2) {
        block<O, 2, O>(linear, x, 0, first, take, ahead);
        row = 2;
    } else {
        block<O, 1, O>(linear, x, 0, first, take, ahead);
        row = 1;
    }
    for (; row + 4 <= rows; row += 4) block<O, 4, 0>(linear, x, row, first, take);
    for (; row + 2 <= rows; row += 2) block<O, 2, 0>(linear, x, row, first, take);
    if (row < rows) block<O, 1, 0>(linear, x, row, first, take);
}

// take(row, output, x W^T + b) for rows x (rows, inputs); inside a parallel region, without a barrier at its end.
template <class T, class Take> static void product(const Linear &linear, const T *x, int64_t rows, Take take) {
    if (rows == 0) return;
#pragma omp for schedule(static) nowait
    for (int64_t first = 0; first < linear.outputs; first += GROUP) {
        int64_t output = first;
        const int64_t last = std::min(first + GROUP, linear.outputs);
        if (rows >= 4)
            for (; output + TILE <= last; output += TILE) tile<TILE>(linear, x, rows, output, take);
        for (; output < last; ++output) tile<1>(linear, x, rows, output, take);  // with few rows, it reads memory fastest
    }
}

// RMSNorm of `size` numbers, times `weight`.
template <class T, class Out>
static void normalize(const float *x, const void *weight, int64_t size, float epsilon, Out *result) {
    float sums[1][1];
    dots<1, 1>(x, x, size, sums);
    float scale = 1 / std::sqrt(sums[0][0] / size + epsilon);
    for (int64_t i = 0; i < size; ++i) round_to(x[i] * scale * number(((const T *)weight)[i]), result[i]);
}

// Normalizes a query or key (Qwen3), then rotates it.
template <class T>
static void place(float *x, const void *norm, int64_t size, float epsilon, const float *cosines, const float *sines) {
    if (norm) normalize<T>(x, norm, size, epsilon, x);
    for (int64_t i = 0, half = size / 2; i < half; ++i) {
        float first = x[i], second = x[i + half];
        x[i] = first * cosines[i] - second * sines[i];
        x[i + half] = second * cosines[i + half] + first * sines[i + half];
    }
}

// e^x for x <= 0, to about one part in 10^7: 2^n times a polynomial of the remainder (Cephes).
static inline Lanes exponential(Lanes x) {
    typedef int32_t Words __attribute__((vector_size(64)));
    x = x < -87 ? Lanes{} - 87 : x;
    Words n = __builtin_convertvector(x * 1.44269504f - 0.5f, Words);
    Lanes whole = __builtin_convertvector(n, Lanes), rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    Lanes sum = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    return (sum * rest * rest + rest + 1) * (Lanes)((n + 127) << 23);
}

// x sigmoid(x) y.
static inline Lanes gated(Lanes x, Lanes y) {
    const Lanes part = exponential(x > 0 ? -x : x);
    return x * (x > 0 ? Lanes{} + 1 : part) / (1 + part) * y;
}

// result[i .. i + 16 N] of the sum over t of weights[t] values[t].
template <int N, class T>
static inline void weigh(const float *weights, const T *values, int64_t count, int64_t size, int64_t i, T *result) {
    Lanes sum[N] = {};
    for (int64_t t = 0; t < count; ++t)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) sum[n] += weights[t] * lanes(values + t * size + i + 16 * n);
    for (int n = 0; n < 16 * N; ++n) round_to(sum[n / 16][n % 16], result[i + n]);
}

// Attention of one query to `count` keys and values (count, size). `weights` has room for count + 16 numbers.
template <class T>
static void attend(const float *query, const T *keys, const T *values, int64_t count, int64_t size, float scaling,
                   float *weights, T *result) {
    int64_t t = 0;
    for (; t + 4 <= count; t += 4) {
        float scores[4][1];
        dots<4, 1>(keys + t * size, query, size, scores);
        for (int n = 0; n < 4; ++n) weights[t + n] = scores[n][0] * scaling;
    }
    for (; t < count; ++t) {
        float score[1][1];
        dots<1, 1>(keys + t * size, query, size, score);
        weights[t] = score[0][0] * scaling;
    }
    std::fill_n(weights + count, 16, -INFINITY);
    const float largest = *std::max_element(weights, weights + count);
    Lanes whole = {};
    for (t = 0; t < count; t += 16) {
        Lanes weight = exponential(lanes(weights + t) - largest);
        memcpy(weights + t, &weight, 64);
        whole += weight;
    }
    const float share = 1 / total(whole);
    for (t = 0; t < count; ++t) weights[t] *= share;
    int64_t i = 0;
    for (; i + 64 <= size; i += 64) weigh<4>(weights, values, count, size, i, result);
    for (; i + 16 <= size; i += 16) weigh<1>(weights, values, count, size, i, result);
    for (; i < size; ++i) {
        float sum = 0;
        for (t = 0; t < count; ++t) sum += weights[t] * number(values[t * size + i]);
        round_to(sum, result[i]);
    }
}

// Feeds tokens: each an id, a row of the cache and a place in it. A token attends to those of its row up to its own place.
// All of those must be in the cache, or fed by this call. `result` (count, width) is the last norm's output.
template <class T>
static void step(const Model &m, int64_t count, const int64_t *ids, const int64_t *rows, const int64_t *places,
                 const float *cosines, const float *sines, T *result) {
    const int64_t size = m.head_size, group = m.heads / m.key_heads;
    const int64_t inners = count * m.inner, padded = (inners + 15) / 16 * 16;
    std::vector<float> state(count * m.width), gate(padded), up(padded);
    std::vector<float> query(count * m.heads * size), key(count * m.key_heads * size), value(count * m.key_heads * size);
    std::vector<T> attended(count * m.heads * size), inner(padded);
    auto into = [](std::vector<float> &to, int64_t outputs) {
        return [&to, outputs](int64_t token, int64_t output, float sum) { to[token * outputs + output] = sum; };
    };
    auto add = [&](int64_t token, int64_t output, float sum) { state[token * m.width + output] += sum; };
    auto norm = [&](const void *weight) {
#pragma omp for schedule(static)
        for (int64_t token = 0; token < count; ++token)
            normalize<T>(&state[token * m.width], weight, m.width, m.epsilon, result + token * m.width);
    };
#pragma omp parallel num_threads(m.threads)
    {
        std::vector<float> weights(m.places + 16);
#pragma omp for schedule(static)
        for (int64_t token = 0; token < count; ++token)
            for (int64_t i = 0; i < m.width; ++i)
                state[token * m.width + i] = number(((const T *)m.embedding)[ids[token] * m.width + i]);
        for (int64_t l = 0; l < m.num_layers; ++l) {
            const Layer &layer = m.layers[l];
            // Keys or values of one head in the row of a token.
            auto cached = [&](void *cache, int64_t token, int64_t head) {
                return (T *)cache + (rows[token] * m.key_heads + head) * m.places * size;
            };
            norm(layer.attention_norm);
            product(layer.query, result, count, into(query, m.heads * size));
            product(layer.key, result, count, into(key, m.key_heads * size));
            product(layer.value, result, count, into(value, m.key_heads * size));
#pragma omp barrier
#pragma omp for schedule(static)
            for (int64_t item = 0; item < count * m.key_heads; ++item) {
                const int64_t token = item / m.key_heads, head = item % m.key_heads, now = places[token] * size;
                T *keys = cached(layer.keys, token, head) + now, *values = cached(layer.values, token, head) + now;
                place<T>(&key[item * size], layer.key_norm, size, m.epsilon, cosines + token * size, sines + token * size);
                for (int64_t i = 0; i < size; ++i) {
                    round_to(key[item * size + i], keys[i]);
                    round_to(value[item * size + i], values[i]);
                }
            }
#pragma omp for schedule(static)
            for (int64_t item = 0; item < count * m.key_heads; ++item) {
                const int64_t token = item / m.key_heads, start = m.starts[rows[token]];
                const T *keys = cached(layer.keys, token, item % m.key_heads) + start * size;
                const T *values = cached(layer.values, token, item % m.key_heads) + start * size;
                for (int64_t head = item * group; head < (item + 1) * group; ++head) {
                    place<T>(&query[head * size], layer.query_norm, size, m.epsilon, cosines + token * size,
                             sines + token * size);
                    attend(&query[head * size], keys, values, places[token] + 1 - start, size, m.scaling, weights.data(),
                           &attended[head * size]);
                }
            }
            product(layer.out, attended.data(), count, add);
#pragma omp barrier
            norm(layer.feed_norm);
            product(layer.gate, result, count, into(gate, m.inner));
            product(layer.up, result, count, into(up, m.inner));
#pragma omp barrier
#pragma omp for schedule(static)
            for (int64_t i = 0; i < padded; i += 16) {
                const Lanes whole = gated(lanes(&gate[i]), lanes(&up[i]));
                for (int n = 0; n < 16; ++n) round_to(whole[n], inner[i + n]);
            }
            product(layer.down, inner.data(), count, add);
#pragma omp barrier
        }
        norm(m.norm);
    }
}

template <class T> static void map(const Linear &linear, const T *x, int64_t rows, int64_t threads, float *result) {
#pragma omp parallel num_threads(threads)
    product(linear, x, rows, [&](int64_t row, int64_t output, float sum) { result[row * linear.outputs + output] = sum; });
}

extern "C" {
int64_t vector_bytes() { return VECTOR_BYTES; }
void step_float32(const Model *m, int64_t count, const int64_t *ids, const int64_t *rows, const int64_t *places,
                  const float *cosines, const float *sines, void *out) {
    step(*m, count, ids, rows, places, cosines, sines, (float *)out);
}
void step_bfloat16(const Model *m, int64_t count, const int64_t *ids, const int64_t *rows, const int64_t *places,
                   const float *cosines, const float *sines, void *out) {
    step(*m, count, ids, rows, places, cosines, sines, (bf16 *)out);
}
void map_float32(const Linear *linear, const void *x, int64_t rows, int64_t threads, float *result) {
    map(*linear, (const float *)x, rows, threads, result);
}
void map_bfloat16(const Linear *linear, const void *x, int64_t rows, int64_t threads, float *result) {
    map(*linear, (const bf16 *)x, rows, threads, result);
}
}
