/* The emulation's inner loops: see emulation.h, and emulation_twin.py for the specification.

   Only additions, multiplications, comparisons and one log of the C library are used on floating-point numbers, in
   the order of the twin, so that both give the same bits. No function draws randomness: it comes in as arrays. */

#include "emulation.h"

#include <math.h>

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

#define PHOTONS_MAX 15
#define GAP_MAX 35184372088832.0           /* 2^45 */
#define UNIT 0x1p-53
#define NEVER ((uint64_t)INT64_MAX)
#define BASIS_UNKNOWN 2

size_t emulation_propose(const double *exponentials, size_t count, double inverse_rate, uint64_t start, uint64_t end,
                         uint64_t *blocks)
{
    uint64_t position = start - 1;
    for (size_t i = 0; i < count; i++) {
        double gap = exponentials[i] * inverse_rate;
        position += 1 + (uint64_t)(int64_t)(gap < GAP_MAX ? gap : GAP_MAX); /* the cast floors: gap >= 0 */
        if (position >= end)
            return i;
        blocks[2 * i] = position;
        blocks[2 * i + 1] = 0;
    }
    return count;
}

static inline uint8_t intensity_of(uint64_t word, const uint64_t *thresholds)
{
    uint64_t low = word & 0xFFFFFFFFu;
    return (uint8_t)((low >= thresholds[1]) + (low >= thresholds[2]));
}

static inline uint8_t basis_of(uint64_t word, uint64_t threshold)
{
    return (uint8_t)((word >> 32) < threshold);
}

static inline double uniform_of(uint64_t word)
{
    return (double)(int64_t)(word >> 11) * UNIT;
}

size_t emulation_emit(const uint64_t *blocks, const uint64_t *words, const uint64_t *uniforms, size_t count,
                      const uint64_t *thresholds, const double *tails, double ceiling, uint64_t *positions,
                      uint8_t *tags)
{
    size_t kept = 0;
    for (size_t i = 0; i < count; i++) {
        const double *tail = tails + PHOTONS_MAX * intensity_of(words[2 * i], thresholds);
        double v = uniform_of(uniforms[i]) * ceiling;
        int photons = v < tail[0];
        /* Written before it is known to be kept: no branch on the intensity, which nothing can predict. */
        positions[kept] = blocks[2 * i];
        if (v < tail[1])
            for (photons = 2; photons < PHOTONS_MAX && v < tail[photons]; photons++)
                ;
        unsigned state = (unsigned)basis_of(words[2 * i], thresholds[0]) << 1 | (unsigned)(words[2 * i + 1] & 1);
        tags[kept] = (uint8_t)((unsigned)photons << 4 | state);
        kept += photons > 0;
    }
    return kept;
}

void emulation_split_choices(const uint64_t *words, size_t count, const uint64_t *thresholds, uint8_t *basis,
                             uint8_t *bit, uint8_t *intensity)
{
    for (size_t i = 0; i < count; i++) {
        basis[i] = basis_of(words[2 * i], thresholds[0]);
        bit[i] = (uint8_t)(words[2 * i + 1] & 1);
        intensity[i] = intensity_of(words[2 * i], thresholds);
    }
}

static uint64_t mix(uint64_t z)
{
    z += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

struct gates {
    uint64_t dead_end, pending[2], pending_words[2];
    uint64_t dead_pulses;
    double after_pulse_probability, after_pulse_decay;
    int discard_double;
    uint64_t *detected;
    uint8_t *basis, *bit;
    size_t found;
};

static void trap(struct gates *g, int detector, uint64_t word)
{
    if (uniform_of(word) >= g->after_pulse_probability)
        return;
    word = mix(word);
    double delay = -log((double)(int64_t)((word >> 11) + 1) * UNIT) * g->after_pulse_decay;
    g->pending[detector] = g->dead_end + (uint64_t)(int64_t)delay;
    g->pending_words[detector] = mix(word);
}

/* Register the gate at `position`, with the after-pulses that fall into it; one detection at most. */
static inline void close_gate(struct gates *g, uint64_t position, int mask, uint8_t basis, uint64_t word)
{
    for (int d = 0; d < 2; d++)
        if (g->pending[d] == position) {
            mask |= 1 << d;
            g->pending[d] = NEVER;
        }
    if (position < g->dead_end)
        return;
    g->dead_end = position + g->dead_pulses;
    for (int d = 0; d < 2; d++)
        if (mask >> d & 1)
            trap(g, d, mix(word ^ (uint64_t)d));
    g->detected[g->found] = position;
    g->basis[g->found] = basis;
    g->bit[g->found] = (uint8_t)(mask == 3 ? (word & 1) : (uint64_t)mask >> 1);
    g->found += !(mask == 3 && g->discard_double);
}

/* Register the after-pulses before `end`; returns 0 when there was no room for all of them. */
static inline int release(struct gates *g, uint64_t end, size_t room)
{
    for (;;) {
        int first = g->pending[1] < g->pending[0];
        uint64_t now = g->pending[first];
        if (now >= end)
            return 1;
        if (g->found == room)
            return 0;
        close_gate(g, now, 0, BASIS_UNKNOWN, g->pending_words[first]);
    }
}

size_t emulation_detect(const uint64_t *positions, const uint8_t *tags, const uint64_t *words,
                        const uint64_t *uniforms, size_t count, size_t *next, const double *outcomes,
                        uint64_t basis_threshold, uint64_t end, uint64_t dead_pulses, double after_pulse_probability,
                        double after_pulse_decay, int discard_double, uint64_t *carry, uint64_t *detected,
                        uint8_t *basis, uint8_t *bit, size_t room)
{
    static const uint8_t masks[4] = {1, 2, 3, 0};
    struct gates g = {carry[0], {carry[1], carry[2]}, {carry[3], carry[4]}, dead_pulses, after_pulse_probability,
                      after_pulse_decay, discard_double, detected, basis, bit, 0};
    size_t i = *next;
    while (i < count) {
        /* Gather the arrivals of one gate; the first that clicks gives its word. */
        size_t j = i;
        uint64_t position = positions[i], word = 0;
        uint8_t its_basis = basis_of(words[2 * i], basis_threshold);
        int mask = 0;
        do {
            const double *limits = outcomes + 3 * (2 * (size_t)tags[j] + its_basis);
            double u = uniform_of(uniforms[j]);
            int click = masks[(u >= limits[0]) + (u >= limits[1]) + (u >= limits[2])];
            if (!mask && click)
                word = uniforms[j];
            mask |= click;
            j++;
        } while (j < count && positions[j] == position);
        if (mask) {
            if (!release(&g, position, room) || g.found == room)
                break;
            close_gate(&g, position, mask, its_basis, word);
        }
        i = j;
    }
    if (i == count && !release(&g, end, room))
        i = count + 1; /* all arrivals are consumed, after-pulses are not: the caller comes back with next = count */
    *next = i;
    carry[0] = g.dead_end;
    carry[1] = g.pending[0], carry[2] = g.pending[1];
    carry[3] = g.pending_words[0], carry[4] = g.pending_words[1];
    return g.found;
}
