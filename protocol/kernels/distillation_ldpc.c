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

#if QD_X86
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

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
    const uint32_t *phi;   /* [LIMIT + 1]: -ln tanh(x/2), scaled by 2^20 */
    const int16_t *inverse; /* [1024]: by the exponent and five bits of the mantissa of the scaled sum */
} tables;

/* What the check hears from one edge: its value without what the check said last. */
INLINE void hear(uint32_t count, const int16_t *restrict value, const int16_t *restrict said, int16_t *restrict heard,
                 uint32_t *restrict total, int16_t *restrict signs, int16_t *restrict parity,
                 const uint32_t *restrict phi)
{
    for (uint32_t i = 0; i < count; i++) {
        int32_t v = value[i] - said[i], size = v < 0 ? -v : v;
        heard[i] = (int16_t)v;
        total[i] += phi[size < LIMIT ? size : LIMIT];
        signs[i] ^= (int16_t)v;
        parity[i] ^= value[i];
    }
}

/* What the check says: by the sum over the other edges, with the sign that makes its parity right. */
INLINE int16_t say(uint32_t count, int16_t *restrict value, int16_t *restrict said, const int16_t *restrict heard,
                   const uint32_t *restrict total, const int16_t *restrict signs, tables table)
{
    int16_t changed = 0;
    for (uint32_t i = 0; i < count; i++) {
        int32_t v = heard[i], own = v < 0 ? -v : v, index;
        int32_t others = (int32_t)(total[i] - table.phi[own < LIMIT ? own : LIMIT]);
        float scaled = (float)(others > 0 ? others : 1);
        memcpy(&index, &scaled, sizeof index);
        int32_t size = table.inverse[(index >> 18) - 127 * 32];
        int32_t message = (signs[i] ^ v) < 0 ? -size : size;
        int16_t now = (int16_t)(v + message);
        changed |= (int16_t)(now ^ value[i]);
        said[i] = (int16_t)message;
        value[i] = now;
    }
    return changed;
}

/* One row of circulants. Returns whether a check failed or a decision changed. */
INLINE int layer(uint32_t z, uint32_t degree, const uint32_t *column, const uint32_t *shift, int16_t *values,
                 int16_t *said, int16_t *heard, const int16_t *target, row_state state, tables table)
{
    int16_t changed = 0, failed = 0;
    for (uint32_t i = 0; i < z; i++) {
        state.total[i] = 0;
        state.signs[i] = state.parity[i] = target[i];
    }
    for (uint32_t edge = 0; edge < degree; edge++) {
        int16_t *value = values + (size_t)column[edge] * z;
        size_t at = (size_t)edge * z;
        uint32_t turn = shift[edge], rest = z - turn;
        hear(rest, value + turn, said + at, heard + at, state.total, state.signs, state.parity, table.phi);
        hear(turn, value, said + at + rest, heard + at + rest, state.total + rest, state.signs + rest,
             state.parity + rest, table.phi);
    }
    for (uint32_t edge = 0; edge < degree; edge++) {
        int16_t *value = values + (size_t)column[edge] * z;
        size_t at = (size_t)edge * z;
        uint32_t turn = shift[edge], rest = z - turn;
        changed |= say(rest, value + turn, said + at, heard + at, state.total, state.signs, table);
        changed |= say(turn, value, said + at + rest, heard + at + rest, state.total + rest, state.signs + rest, table);
    }
    for (uint32_t i = 0; i < z; i++) failed |= state.parity[i];
    return changed < 0 || failed < 0;
}

typedef int (*layer_function)(uint32_t, uint32_t, const uint32_t *, const uint32_t *, int16_t *, int16_t *, int16_t *,
                              const int16_t *, row_state, tables);

#define DEFINE_LAYER(name, target)                                                                                  \
    target static int name(uint32_t z, uint32_t degree, const uint32_t *column, const uint32_t *shift,              \
                           int16_t *values, int16_t *said, int16_t *heard, const int16_t *wanted, row_state state,  \
                           tables table)                                                                            \
    {                                                                                                               \
        return layer(z, degree, column, shift, values, said, heard, wanted, state, table);                          \
    }

#define ANY_TARGET
DEFINE_LAYER(layer_portable, ANY_TARGET)
#if QD_X86
DEFINE_LAYER(layer_avx2, QD_TARGET("avx2"))
DEFINE_LAYER(layer_avx512, QD_TARGET("avx512f,avx512bw,avx512vl,prefer-vector-width=512"))
#endif

static layer_function choose_layer(void)
{
#if QD_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) return layer_avx512;
    if (__builtin_cpu_supports("avx2")) return layer_avx2;
#endif
    return layer_portable;
}

/* Find the error pattern of `syndrome` (0/1 per check). The first size_bits variables have the prior `prior` of being
 * 0, the others are known to be 0. Returns the iterations used, 0 if none converged, or QD_NO_MEMORY. */
int qd_ldpc_decode(uint32_t z, uint32_t rows, const uint32_t *row_start, const uint32_t *column, const uint32_t *shift,
                   uint32_t columns, uint32_t size_bits, int32_t prior, const uint32_t *phi, const int16_t *inverse,
                   const uint8_t *syndrome, uint32_t iterations_max, uint8_t *errors)
{
    size_t edges = row_start[rows], variables = (size_t)columns * z, checks = (size_t)rows * z;
    uint32_t degree_max = 0;
    for (uint32_t row = 0; row < rows; row++) {
        uint32_t degree = row_start[row + 1] - row_start[row];
        degree_max = degree > degree_max ? degree : degree_max;
    }
    size_t count = variables + edges * z + (size_t)degree_max * z + checks + 2 * (size_t)z;
    size_t words = z + count / 4 + 1; /* of 64 bits; z of them hold the totals */
    uint64_t *memory = calloc(words, sizeof *memory);
    if (!memory) return QD_NO_MEMORY;
    int16_t *values = (int16_t *)(memory + z), *said = values + variables, *heard = said + edges * z;
    int16_t *target = heard + (size_t)degree_max * z, *scratch = target + checks;
    row_state state = {(uint32_t *)memory, scratch, scratch + z};
    tables table = {phi, inverse};
    for (size_t i = 0; i < variables; i++) values[i] = i < size_bits ? (int16_t)prior : LIMIT;
    for (size_t i = 0; i < checks; i++) target[i] = syndrome[i] ? INT16_MIN : 0;
    layer_function run = choose_layer();
    int used = 0;
    for (uint32_t iteration = 1; iteration <= iterations_max && !used; iteration++) {
        int unsettled = 0;
        for (uint32_t row = 0; row < rows; row++) {
            uint32_t first = row_start[row];
            unsettled |= run(z, row_start[row + 1] - first, column + first, shift + first, values,
                             said + (size_t)first * z, heard, target + (size_t)row * z, state, table);
        }
        if (!unsettled) used = (int)iteration;
    }
    for (uint32_t i = 0; i < size_bits; i++) errors[i] = values[i] < 0;
    qd_wipe(memory, words);
    free(memory);
    return used;
}
