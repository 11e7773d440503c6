/* Low-density parity checks of a quasi-cyclic code: syndromes, and decoding by layered belief propagation.
 *
 * A code has `rows` rows of circulants of size z. Edge e of row r, row_start[r] ≤ e < row_start[r + 1], connects check
 * r·z + i with variable column[e]·z + (i + shift[e]) mod z. The twin in distillation.py specifies the arithmetic:
 * integers and two tables, so both agree bit for bit.
 */
#include "distillation.h"

#include <stdlib.h>
#include <string.h>

#define LIMIT 1023 /* 16 nats at 64 units per nat: the table `phi` ends there. A value sums at most 30 messages. */

/* sums[i] ^= bits[i], the circulant's turn having been made by the caller. */
void qd_ldpc_syndrome(uint32_t z, uint32_t rows, const uint32_t *row_start, const uint32_t *column,
                      const uint32_t *shift, const uint8_t *bits, uint8_t *syndrome)
{
    memset(syndrome, 0, (size_t)rows * z);
    for (uint32_t row = 0; row < rows; row++)
        for (uint32_t edge = row_start[row]; edge < row_start[row + 1]; edge++) {
            const uint8_t *from = bits + (size_t)column[edge] * z;
            uint8_t *to = syndrome + (size_t)row * z;
            uint32_t turn = shift[edge];
            for (uint32_t i = 0; i < z - turn; i++) to[i] ^= from[i + turn];
            for (uint32_t i = 0; i < turn; i++) to[z - turn + i] ^= from[i];
        }
}

typedef struct {
    uint32_t *total;         /* per check of the row: the sum of phi over its edges */
    int16_t *signs, *parity; /* in the top bit: of what it hears, and of the decisions */
} row_state;

typedef struct {
    const uint32_t *phi;    /* [LIMIT + 1]: -ln tanh(x/2), scaled by 2^20 */
    const int32_t *inverse; /* [1024]: by the exponent and five bits of the mantissa of the scaled sum */
} tables;

/* What the check hears from one edge: its value without what the check said last, and phi of that. */
typedef void (*hear_function)(uint32_t count, const int16_t *value, const int16_t *said, int16_t *heard,
                              uint32_t *term, uint32_t *total, int16_t *signs, int16_t *parity, tables table);

/* What the check says: by the sum over the other edges, with the sign that makes its parity right. Returns whether a
 * decision changed. */
typedef int (*say_function)(uint32_t count, int16_t *value, int16_t *said, const int16_t *heard, const uint32_t *term,
                            const uint32_t *total, const int16_t *signs, tables table);

static void hear_portable(uint32_t count, const int16_t *value, const int16_t *said, int16_t *heard, uint32_t *term,
                          uint32_t *total, int16_t *signs, int16_t *parity, tables table)
{
    for (uint32_t i = 0; i < count; i++) {
        int32_t v = value[i] - said[i], size = v < 0 ? -v : v;
        heard[i] = (int16_t)v;
        term[i] = table.phi[size < LIMIT ? size : LIMIT];
        total[i] += term[i];
        signs[i] ^= (int16_t)v;
        parity[i] ^= value[i];
    }
}

static int say_portable(uint32_t count, int16_t *value, int16_t *said, const int16_t *heard, const uint32_t *term,
                        const uint32_t *total, const int16_t *signs, tables table)
{
    int32_t changed = 0;
    for (uint32_t i = 0; i < count; i++) {
        int32_t v = heard[i], index, others = (int32_t)(total[i] - term[i]);
        float scaled = (float)(others > 0 ? others : 1);
        memcpy(&index, &scaled, sizeof index);
        int32_t size = table.inverse[(index >> 18) - 127 * 32];
        int32_t message = (signs[i] ^ v) < 0 ? -size : size, now = v + message;
        changed |= now ^ value[i];
        said[i] = (int16_t)message;
        value[i] = (int16_t)now;
    }
    return changed < 0;
}

#if QD_X86
#include <immintrin.h>

#define WIDE QD_TARGET("avx512f,avx512bw,avx512vl,avx512dq")

WIDE static __m512i widen(__mmask16 lanes, const int16_t *from)
{
    return _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(lanes, from));
}

WIDE static void narrow(__mmask16 lanes, int16_t *to, __m512i values)
{
    _mm256_mask_storeu_epi16(to, lanes, _mm512_cvtepi32_epi16(values));
}

WIDE static void hear_wide(uint32_t count, const int16_t *value, const int16_t *said, int16_t *heard, uint32_t *term,
                           uint32_t *total, int16_t *signs, int16_t *parity, tables table)
{
    for (uint32_t i = 0; i < count; i += 16) {
        __mmask16 lanes = count - i < 16 ? (__mmask16)((1u << (count - i)) - 1) : 0xFFFF;
        __m512i before = widen(lanes, value + i), v = _mm512_sub_epi32(before, widen(lanes, said + i));
        __m512i index = _mm512_min_epi32(_mm512_abs_epi32(v), _mm512_set1_epi32(LIMIT));
        __m512i phi = _mm512_i32gather_epi32(index, table.phi, 4);
        narrow(lanes, heard + i, v);
        _mm512_mask_storeu_epi32(term + i, lanes, phi);
        _mm512_mask_storeu_epi32(total + i, lanes, _mm512_add_epi32(_mm512_maskz_loadu_epi32(lanes, total + i), phi));
        narrow(lanes, signs + i, _mm512_xor_si512(widen(lanes, signs + i), v));
        narrow(lanes, parity + i, _mm512_xor_si512(widen(lanes, parity + i), before));
    }
}

WIDE static int say_wide(uint32_t count, int16_t *value, int16_t *said, const int16_t *heard, const uint32_t *term,
                         const uint32_t *total, const int16_t *signs, tables table)
{
    __m512i changed = _mm512_setzero_si512();
    for (uint32_t i = 0; i < count; i += 16) {
        __mmask16 lanes = count - i < 16 ? (__mmask16)((1u << (count - i)) - 1) : 0xFFFF;
        __m512i v = widen(lanes, heard + i);
        __m512i others =
            _mm512_sub_epi32(_mm512_maskz_loadu_epi32(lanes, total + i), _mm512_maskz_loadu_epi32(lanes, term + i));
        __m512 scaled = _mm512_cvtepi32_ps(_mm512_max_epi32(others, _mm512_set1_epi32(1)));
        __m512i index = _mm512_srai_epi32(_mm512_castps_si512(scaled), 18);
        __m512i size = _mm512_i32gather_epi32(_mm512_sub_epi32(index, _mm512_set1_epi32(127 * 32)), table.inverse, 4);
        __mmask16 negative = _mm512_movepi32_mask(_mm512_xor_si512(widen(lanes, signs + i), v));
        __m512i message = _mm512_mask_sub_epi32(size, negative, _mm512_setzero_si512(), size);
        __m512i now = _mm512_add_epi32(v, message);
        __m512i differs = _mm512_xor_si512(now, widen(lanes, value + i));
        changed = _mm512_mask_or_epi32(changed, lanes, changed, differs);
        narrow(lanes, said + i, message);
        narrow(lanes, value + i, now);
    }
    return _mm512_movepi32_mask(changed) != 0;
}
#endif

typedef struct {
    hear_function hear;
    say_function say;
} loops;

static loops choose_loops(void)
{
#if QD_X86
    if (qd_level() == 2) return (loops){hear_wide, say_wide};
#endif
    return (loops){hear_portable, say_portable};
}

/* One row of circulants. Returns whether a check failed or a decision changed. */
static int layer(loops run, uint32_t z, uint32_t degree, const uint32_t *column, const uint32_t *shift,
                 int16_t *values, int16_t *said, int16_t *heard, uint32_t *terms, const int16_t *target,
                 row_state state, tables table)
{
    int16_t failed = 0;
    int changed = 0;
    for (uint32_t i = 0; i < z; i++) {
        state.total[i] = 0;
        state.signs[i] = state.parity[i] = target[i];
    }
    for (uint32_t edge = 0; edge < degree; edge++) {
        int16_t *value = values + (size_t)column[edge] * z;
        size_t at = (size_t)edge * z;
        uint32_t turn = shift[edge], rest = z - turn;
        run.hear(rest, value + turn, said + at, heard + at, terms + at, state.total, state.signs, state.parity, table);
        at += rest;
        run.hear(turn, value, said + at, heard + at, terms + at, state.total + rest, state.signs + rest,
                 state.parity + rest, table);
    }
    for (uint32_t edge = 0; edge < degree; edge++) {
        int16_t *value = values + (size_t)column[edge] * z;
        size_t at = (size_t)edge * z;
        uint32_t turn = shift[edge], rest = z - turn;
        changed |= run.say(rest, value + turn, said + at, heard + at, terms + at, state.total, state.signs, table);
        at += rest;
        changed |= run.say(turn, value, said + at, heard + at, terms + at, state.total + rest, state.signs + rest,
                           table);
    }
    for (uint32_t i = 0; i < z; i++) failed |= state.parity[i];
    return changed || failed < 0;
}

/* Find the error pattern of `syndrome` (0/1 per check). The first size_bits variables have the prior `prior` of being
 * 0, the others are known to be 0. Returns the iterations used, 0 if none converged, or QD_NO_MEMORY. */
int qd_ldpc_decode(uint32_t z, uint32_t rows, const uint32_t *row_start, const uint32_t *column, const uint32_t *shift,
                   uint32_t columns, uint32_t size_bits, int32_t prior, const uint32_t *phi, const int32_t *inverse,
                   const uint8_t *syndrome, uint32_t iterations_max, uint8_t *errors)
{
    size_t edges = row_start[rows], variables = (size_t)columns * z, checks = (size_t)rows * z;
    uint32_t degree_max = 0;
    for (uint32_t row = 0; row < rows; row++) {
        uint32_t degree = row_start[row + 1] - row_start[row];
        degree_max = degree > degree_max ? degree : degree_max;
    }
    size_t count = variables + edges * z + (size_t)degree_max * z + checks + 2 * (size_t)z;
    size_t totals = ((size_t)degree_max + 1) * z; /* and the terms, 32 bits each */
    size_t words = totals / 2 + 1 + count / 4 + 1; /* of 64 bits */
    uint64_t *memory = calloc(words, sizeof *memory);
    if (!memory) return QD_NO_MEMORY;
    int16_t *values = (int16_t *)(memory + totals / 2 + 1), *said = values + variables, *heard = said + edges * z;
    int16_t *target = heard + (size_t)degree_max * z, *scratch = target + checks;
    uint32_t *terms = (uint32_t *)memory + z;
    row_state state = {(uint32_t *)memory, scratch, scratch + z};
    tables table = {phi, inverse};
    for (size_t i = 0; i < variables; i++) values[i] = i < size_bits ? (int16_t)prior : LIMIT;
    for (size_t i = 0; i < checks; i++) target[i] = syndrome[i] ? INT16_MIN : 0;
    loops run = choose_loops();
    int used = 0;
    for (uint32_t iteration = 1; iteration <= iterations_max && !used; iteration++) {
        int unsettled = 0;
        for (uint32_t row = 0; row < rows; row++) {
            uint32_t first = row_start[row];
            unsettled |= layer(run, z, row_start[row + 1] - first, column + first, shift + first, values,
                               said + (size_t)first * z, heard, terms, target + (size_t)row * z, state, table);
        }
        if (!unsettled) used = (int)iteration;
    }
    for (uint32_t i = 0; i < size_bits; i++) errors[i] = values[i] < 0;
    qd_wipe(memory, words);
    free(memory);
    return used;
}
