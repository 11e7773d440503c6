/* Kernels of distillation. What each computes is specified by its numpy twin; see distillation.py.
 *
 * No function keeps a pointer it was given, except that a qd_cascade owns copies. Nothing allocates without a
 * matching free; functions that can run out of memory return NULL or QD_NO_MEMORY.
 */
#ifndef QNODE_DISTILLATION_H
#define QNODE_DISTILLATION_H

#include <stddef.h>
#include <stdint.h>

#define QD_PASSES_MAX 16
#define QD_LANES_MAX 64

#define QD_MALFORMED (-1)
#define QD_NO_MEMORY (-2)

#if defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__))
#define QD_X86 1
#define QD_TARGET(features) __attribute__((target(features)))
#else
#define QD_X86 0
#endif

/* Overwrite secrets before they are freed; volatile, because a compiler may drop a memset there. */
static inline void qd_wipe(uint64_t *words, size_t count)
{
    volatile uint64_t *at = words;
    for (size_t i = 0; i < count; i++) at[i] = 0;
}

/* What the processor has, and may be used: 0 nothing beyond the compiler's default, 1 AVX2 and PCLMUL, 2 AVX-512 and
 * VPCLMUL. qd_limit_level lowers it, so that tests reach every path; it is not for concurrent use. */
int qd_level(void);
void qd_limit_level(int level);
const char *qd_features(void);

/* distillation_cascade.c */
typedef struct qd_cascade qd_cascade;

qd_cascade *qd_cascade_new(int is_bob, uint64_t size_bits, uint32_t rows, uint32_t lanes, uint32_t passes,
                           const uint32_t *block_rows, const uint64_t *keys, int reuse, int infer_last,
                           const uint8_t *packed);
void qd_cascade_free(qd_cascade *side);
uint32_t qd_cascade_active(const qd_cascade *side);
uint32_t qd_cascade_corrected(const qd_cascade *side);
size_t qd_cascade_opening(const qd_cascade *alice, uint8_t *out);
int qd_cascade_follow(qd_cascade *alice, const uint8_t *directions, const uint8_t *records, size_t count);
void qd_cascade_answer(const qd_cascade *alice, uint8_t *out);
int64_t qd_cascade_open(qd_cascade *bob, const uint8_t *opening);
int64_t qd_cascade_step(qd_cascade *bob, const uint8_t *answers, uint8_t *directions);
void qd_cascade_records(const qd_cascade *bob, uint8_t *out);
void qd_cascade_bits(const qd_cascade *bob, uint8_t *packed);

/* distillation_hash.c */
void qd_polynomial_hash(const uint8_t *data, size_t size_bytes, const uint8_t *point, uint8_t *value);
size_t qd_split(const uint8_t *bits, const uint8_t *mask, size_t count, uint8_t *kept, uint8_t *taken);
int qd_toeplitz(const uint8_t *tail, size_t tail_bits, const uint8_t *diagonal, size_t output_bits, uint8_t *out);

/* distillation_ldpc.c */
void qd_ldpc_syndrome(uint32_t z, uint32_t rows, const uint32_t *row_start, const uint32_t *column,
                      const uint32_t *shift, const uint8_t *bits, uint8_t *syndrome);
int qd_ldpc_decode(uint32_t z, uint32_t rows, const uint32_t *row_start, const uint32_t *column, const uint32_t *shift,
                   uint32_t columns, uint32_t size_bits, int32_t prior, const uint32_t *phi, const int32_t *inverse,
                   const uint8_t *syndrome, uint32_t iterations_max, uint8_t *errors);

#endif
