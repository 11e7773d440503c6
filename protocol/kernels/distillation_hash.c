/* The polynomial hash of verification, the split of a sample, and the Toeplitz hash of privacy amplification.
 *
 * The Toeplitz hash is a product of polynomials over GF(2): carry-less multiplication of 64-bit words, by PCLMUL or
 * VPCLMUL where the processor has them (asked at run time), under Karatsuba's recursion.
 */
#include "distillation.h"

#include <stdlib.h>
#include <string.h>

/* ---- polynomial hash over 2^127 - 1 */

#define CHUNK_BYTES 15

typedef struct {
    uint64_t low, high;
} field; /* an element modulo 2^127 - 1, below 2^127 + 2^121, not always reduced */

static uint64_t multiply64(uint64_t a, uint64_t b, uint64_t *high)
{
#if defined(__SIZEOF_INT128__)
    unsigned __int128 product = (unsigned __int128)a * b;
    *high = (uint64_t)(product >> 64);
    return (uint64_t)product;
#else
    uint64_t a0 = (uint32_t)a, a1 = a >> 32, b0 = (uint32_t)b, b1 = b >> 32;
    uint64_t low = a0 * b0, middle = a1 * b0 + (low >> 32), other = a0 * b1 + (uint32_t)middle;
    *high = a1 * b1 + (middle >> 32) + (other >> 32);
    return other << 32 | (uint32_t)low;
#endif
}

static uint64_t add_carry(uint64_t a, uint64_t b, uint64_t *carry)
{
    uint64_t sum = a + b, total = sum + *carry;
    *carry = (sum < a) | (total < sum);
    return total;
}

/* Fold bits 127 and up onto the bottom: 2^127 = 1, 2^128 = 2. The result is below 2^127 + 4. */
static field fold(uint64_t r0, uint64_t r1, uint64_t r2, uint64_t r3)
{
    uint64_t top0 = r1 >> 63 | r2 << 1, top1 = r2 >> 63 | r3 << 1, carry = 0;
    field value;
    value.low = add_carry(r0, top0, &carry);
    value.high = add_carry(r1 & (~UINT64_C(0) >> 1), top1, &carry);
    uint64_t over = (value.high >> 63) + 2 * carry;
    value.high &= ~UINT64_C(0) >> 1;
    carry = 0;
    value.low = add_carry(value.low, over, &carry);
    value.high += carry;
    return value;
}

static field multiply(field a, field b)
{
    uint64_t r0, r1, r2, r3, high, carry;
    r0 = multiply64(a.low, b.low, &r1);
    r2 = multiply64(a.high, b.high, &r3);
    uint64_t cross = multiply64(a.low, b.high, &high);
    carry = 0;
    r1 = add_carry(r1, cross, &carry);
    r2 = add_carry(r2, high, &carry);
    r3 += carry;
    cross = multiply64(a.high, b.low, &high);
    carry = 0;
    r1 = add_carry(r1, cross, &carry);
    r2 = add_carry(r2, high, &carry);
    r3 += carry;
    return fold(r0, r1, r2, r3);
}

static field load_field(const uint8_t *bytes, size_t size)
{
    field value = {0, 0};
    for (size_t i = 0; i < size; i++) {
        if (i < 8)
            value.low |= (uint64_t)bytes[i] << (8 * i);
        else
            value.high |= (uint64_t)bytes[i] << (8 * (i - 8));
    }
    return value;
}

/* `point` and `value` are 16 bytes, little endian; the result is fully reduced. */
void qd_polynomial_hash(const uint8_t *data, size_t size_bytes, const uint8_t *point, uint8_t *value)
{
    field r = load_field(point, 16), sum = {0, 0};
    for (size_t start = 0; start < size_bytes; start += CHUNK_BYTES) {
        size_t left = size_bytes - start;
        field chunk = load_field(data + start, left < CHUNK_BYTES ? left : CHUNK_BYTES);
        uint64_t carry = 0;
        sum.low = add_carry(sum.low, chunk.low, &carry);
        sum.high = add_carry(sum.high, chunk.high, &carry); /* cannot overflow 128 bits */
        sum = multiply(sum, r);
    }
    sum = fold(sum.low, sum.high, 0, 0);
    if (sum.low == ~UINT64_C(0) && sum.high == ~UINT64_C(0) >> 1) sum.low = sum.high = 0;
    for (int i = 0; i < 8; i++) {
        value[i] = (uint8_t)(sum.low >> (8 * i));
        value[8 + i] = (uint8_t)(sum.high >> (8 * i));
    }
}

/* ---- splitting a string by a mask (0 or 1 per bit)
 *
 * Both outputs are written at every step and only one advances: no branch depends on the random mask. Each has one
 * element of room more than it is given. Returns how many were taken. */
size_t qd_split(const uint8_t *bits, const uint8_t *mask, size_t count, uint8_t *kept, uint8_t *taken)
{
    size_t in = 0;
    for (size_t i = 0; i < count; i++) {
        kept[i - in] = bits[i];
        taken[in] = bits[i];
        in += mask[i];
    }
    return in;
}

/* ---- Toeplitz matrix times vector over GF(2), on words of 64 bits
 *
 * A matrix of `size` x `size` words is given by `band`, 2·size words: output word i is the sum over j of the low half
 * of band[size + i - j] * x[j] and the high half of band[size + i - j - 1] * x[j], carry-less products.
 * Halving splits it into three products of half the size (Fan and Hasan, IEEE Trans. Computers 56, 224 (2007)):
 *   upper = (W0 + W1) x1 + W1 (x0 + x1),  lower = (W1 + W2) x0 + W1 (x0 + x1),
 * where W0, W1, W2 are the windows of the band at 0, size/2 and size. Scratch: 5·size words.
 */

typedef void (*toeplitz_words)(size_t size, size_t base, const uint64_t *band, const uint64_t *x, uint64_t *y,
                               uint64_t *scratch);

#define BASE_WORDS_MAX 32 /* a multiple of 8; larger blocks are halved: measured best with VPCLMUL */

#define DEFINE_RECURSION(name, target, multiply_base)                                                               \
    target static void name(size_t size, size_t base, const uint64_t *restrict band, const uint64_t *restrict x,    \
                            uint64_t *restrict y, uint64_t *restrict scratch)                                       \
    {                                                                                                               \
        if (size == base) {                                                                                         \
            multiply_base(size, band, x, y);                                                                        \
            return;                                                                                                 \
        }                                                                                                           \
        size_t half = size / 2;                                                                                     \
        uint64_t *sums = scratch, *folded = scratch + 3 * half, *shared = scratch + 4 * half;                       \
        for (size_t i = 0; i < 3 * half; i++) sums[i] = band[i] ^ band[i + half];                                   \
        for (size_t i = 0; i < half; i++) folded[i] = x[i] ^ x[i + half];                                           \
        name(half, base, sums, x + half, y, scratch + 5 * half);                                                    \
        name(half, base, sums + half, x, y + half, scratch + 5 * half);                                             \
        name(half, base, band + half, folded, shared, scratch + 5 * half);                                          \
        for (size_t i = 0; i < half; i++) {                                                                         \
            y[i] ^= shared[i];                                                                                      \
            y[i + half] ^= shared[i];                                                                               \
        }                                                                                                           \
    }

#define ANY_TARGET

/* Carry-less product of two words by a table of the 16 multiples of `a`. */
static void multiply_word(uint64_t a, uint64_t b, uint64_t *low, uint64_t *high)
{
    uint64_t table_low[16], table_high[16];
    for (uint32_t v = 0; v < 16; v++) {
        table_low[v] = table_high[v] = 0;
        for (uint32_t bit = 0; bit < 4; bit++) {
            uint64_t chosen = (uint64_t)0 - (v >> bit & 1);
            table_low[v] ^= a << bit & chosen;
            if (bit) table_high[v] ^= a >> (64 - bit) & chosen;
        }
    }
    uint64_t l = 0, h = 0;
    for (int shift = 60; shift >= 0; shift -= 4) {
        uint32_t v = b >> shift & 15;
        h = h << 4 | l >> 60;
        l <<= 4;
        l ^= table_low[v];
        h ^= table_high[v];
    }
    *low = l;
    *high = h;
}

static void base_portable(size_t size, const uint64_t *band, const uint64_t *x, uint64_t *y)
{
    memset(y, 0, size * sizeof *y);
    for (size_t index = 0; index <= size; index++)
        for (size_t j = 0; j < size; j++) {
            uint64_t low, high;
            multiply_word(band[size - 1 + index - j], x[j], &low, &high);
            if (index) y[index - 1] ^= low;
            if (index < size) y[index] ^= high;
        }
}

DEFINE_RECURSION(toeplitz_portable, ANY_TARGET, base_portable)

#if QD_X86
#include <immintrin.h>

QD_TARGET("pclmul,avx2")
static void base_pclmul(size_t size, const uint64_t *band, const uint64_t *x, uint64_t *y)
{
    uint64_t products[2 * (BASE_WORDS_MAX + 2)] = {0}; /* entry d: the sum over j of band[size - 2 + d - j] x[j] */
    for (size_t d = 0; d < size + 2; d += 2) {
        __m128i even = _mm_setzero_si128(), odd = even;
        const uint64_t *at = band + size - 2 + d;
        size_t first = d == 0 ? 1 : 0; /* entry 0 is not needed, and its last term would lie before the band */
        for (size_t j = 0; j + first < size; j++) {
            __m128i pair = _mm_loadu_si128((const __m128i *)(at - j));
            __m128i factor = _mm_loadl_epi64((const __m128i *)(x + j));
            even = _mm_xor_si128(even, _mm_clmulepi64_si128(pair, factor, 0x00));
            odd = _mm_xor_si128(odd, _mm_clmulepi64_si128(pair, factor, 0x01));
        }
        if (first) {
            __m128i word = _mm_loadl_epi64((const __m128i *)band);
            __m128i factor = _mm_loadl_epi64((const __m128i *)(x + size - 1));
            odd = _mm_xor_si128(odd, _mm_clmulepi64_si128(word, factor, 0x00));
        }
        _mm_storeu_si128((__m128i *)(products + 2 * d), even);
        _mm_storeu_si128((__m128i *)(products + 2 * d + 2), odd);
    }
    for (size_t i = 0; i < size; i++) y[i] = products[2 * (i + 2)] ^ products[2 * (i + 1) + 1];
}

DEFINE_RECURSION(toeplitz_pclmul, QD_TARGET("pclmul,avx2"), base_pclmul)

/* Eight sums of products at a time. `band` has 8 readable words before it. */
#define VECTORS_MAX (BASE_WORDS_MAX / 8 + 1)

#define DEFINE_VECTOR_BASE(vectors)                                                                                 \
    QD_TARGET("avx512f,avx512dq,vpclmulqdq,pclmul")                                                                 \
    static void base_vector_##vectors(const uint64_t *at, size_t size, const uint64_t *x, uint64_t *products)       \
    {                                                                                                               \
        __m512i even[vectors], odd[vectors];                                                                        \
        for (size_t v = 0; v < vectors; v++) even[v] = odd[v] = _mm512_setzero_si512();                             \
        for (size_t j = 0; j < size; j++) {                                                                         \
            __m512i factor = _mm512_set1_epi64((long long)x[j]);                                                    \
            for (size_t v = 0; v < vectors; v++) {                                                                  \
                __m512i words = _mm512_loadu_si512(at + 8 * v - j);                                                 \
                even[v] = _mm512_xor_si512(even[v], _mm512_clmulepi64_epi128(words, factor, 0x00));                 \
                odd[v] = _mm512_xor_si512(odd[v], _mm512_clmulepi64_epi128(words, factor, 0x01));                   \
            }                                                                                                       \
        }                                                                                                           \
        for (size_t v = 0; v < vectors; v++) { /* low halves and high halves, each in the order of the words */     \
            _mm512_storeu_si512(products + 16 * v, _mm512_unpacklo_epi64(even[v], odd[v]));                         \
            _mm512_storeu_si512(products + 16 * v + 8, _mm512_unpackhi_epi64(even[v], odd[v]));                     \
        }                                                                                                           \
    }

DEFINE_VECTOR_BASE(2)
DEFINE_VECTOR_BASE(3)
DEFINE_VECTOR_BASE(4)
DEFINE_VECTOR_BASE(5)

QD_TARGET("avx512f,avx512dq,vpclmulqdq,pclmul")
static void base_vector(size_t size, const uint64_t *band, const uint64_t *x, uint64_t *y)
{
    uint64_t products[16 * VECTORS_MAX];
    const uint64_t *at = band + size - 8; /* entry d: the sum over j of band[size - 8 + d - j] x[j] */
    switch (size / 8) {
    case 1: base_vector_2(at, size, x, products); break;
    case 2: base_vector_3(at, size, x, products); break;
    case 3: base_vector_4(at, size, x, products); break;
    default: base_vector_5(at, size, x, products); break;
    }
    for (size_t i = 0; i < size; i++) {
        size_t low = i + 8, high = i + 7;
        y[i] = products[16 * (low / 8) + low % 8] ^ products[16 * (high / 8) + 8 + high % 8];
    }
}

DEFINE_RECURSION(toeplitz_vector, QD_TARGET("avx512f,avx512dq,vpclmulqdq,pclmul"), base_vector)
#endif

static int level_limit = 2;

void qd_limit_level(int level) { level_limit = level; }

int qd_level(void)
{
    int level = 0;
#if QD_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("pclmul")) {
        level = 1;
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
            __builtin_cpu_supports("vpclmulqdq"))
            level = 2;
    }
#endif
    return level < level_limit ? level : level_limit;
}

const char *qd_features(void)
{
    static const char *const names[] = {"portable", "avx2, pclmul", "avx512, vpclmulqdq"};
    return names[qd_level()];
}

static toeplitz_words choose(void)
{
#if QD_X86
    int level = qd_level();
    if (level == 2) return toeplitz_vector;
    if (level == 1) return toeplitz_pclmul;
#endif
    return toeplitz_portable;
}

/* The cheapest square tile for rows x columns words: base·2^k, by its count of word products. */
static size_t choose_tile(size_t rows, size_t columns, size_t *base)
{
    size_t best = 0;
    double least = 0;
    for (size_t first = 8; first <= BASE_WORDS_MAX; first += 8) {
        double work = (double)first * (double)(first + 8);
        for (size_t size = first;; size *= 2, work *= 3.2) { /* three halves, and the additions around them */
            double tiles = (double)((rows + size - 1) / size) * (double)((columns + size - 1) / size);
            if (!best || tiles * work < least) {
                best = size;
                *base = first;
                least = tiles * work;
            }
            if (size >= rows && size >= columns) break;
        }
    }
    return best;
}

static void load_words(uint64_t *words, const uint8_t *bytes, size_t size_bytes)
{
    for (size_t i = 0; i < size_bytes; i++) words[i / 8] |= (uint64_t)bytes[i] << (8 * (i % 8));
}

/* Output bit i is the sum over j of diagonal[i - j + tail_bits - 1]·tail[j]. Bits are packed, lowest first; `diagonal`
 * holds at least tail_bits + output_bits - 1 bits, `out` ⌈output_bits / 8⌉ bytes. Both sizes are positive. */
int qd_toeplitz(const uint8_t *tail, size_t tail_bits, const uint8_t *diagonal, size_t output_bits, uint8_t *out)
{
    size_t columns = (tail_bits + 63) / 64, rows = (output_bits + 63) / 64, base = 8;
    size_t size = choose_tile(rows, columns, &base), across = (columns + size - 1) / size;
    size_t down = (rows + size - 1) / size, pad = across * size - columns + 8;
    size_t band_words = pad + columns + down * size + 2;
    size_t diagonal_bytes = (tail_bits + output_bits - 1 + 7) / 8;
    uint64_t *band = calloc(band_words, sizeof *band), *x = calloc(across * size, sizeof *x);
    uint64_t *y = calloc(down * size, sizeof *y), *scratch = malloc((6 * size + 8) * sizeof *scratch);
    int complete = band && x && y && scratch;
    if (complete) {
        load_words(x, tail, (tail_bits + 7) / 8);
        if (tail_bits % 64) x[columns - 1] &= ~UINT64_C(0) >> (64 - tail_bits % 64);
        load_words(band + pad, diagonal, diagonal_bytes);
        size_t shift = 64 * columns - tail_bits + 1; /* 1 … 64: then the wanted coefficients begin at a word */
        for (size_t i = band_words - 1; i > pad; i--)
            band[i] = (shift == 64 ? 0 : band[i] << shift) | band[i - 1] >> (64 - shift);
        band[pad] = shift == 64 ? 0 : band[pad] << shift;
        toeplitz_words multiply_tile = choose();
        uint64_t *part = scratch + 5 * size + 8; /* the first 8 words are read, not used, before a window */
        for (size_t a = 0; a < down; a++)
            for (size_t b = 0; b < across; b++) {
                multiply_tile(size, base, band + pad + columns + a * size - (b + 1) * size, x + b * size, part, scratch + 8);
                for (size_t i = 0; i < size; i++) y[a * size + i] ^= part[i];
            }
        for (size_t i = 0; i < (output_bits + 7) / 8; i++) out[i] = (uint8_t)(y[i / 8] >> (8 * (i % 8)));
        if (output_bits % 8) out[output_bits / 8] &= (uint8_t)(0xFF >> (8 - output_bits % 8));
        qd_wipe(x, across * size);
        qd_wipe(y, down * size);
    }
    free(band);
    free(x);
    free(y);
    free(scratch);
    return complete ? 0 : QD_NO_MEMORY;
}
