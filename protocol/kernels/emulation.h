/* The emulation's inner loops; emulation_twin.py is their specification and says what every argument means. */
#ifndef QNODE_EMULATION_H
#define QNODE_EMULATION_H

#include <stddef.h>
#include <stdint.h>

size_t emulation_propose(const double *exponentials, size_t count, double inverse_rate, uint64_t start, uint64_t end,
                         uint64_t *blocks);

size_t emulation_emit(const uint64_t *blocks, const uint64_t *words, const uint64_t *uniforms, size_t count,
                      const uint64_t *thresholds, const double *tails, double ceiling, uint64_t *positions,
                      uint8_t *tags);

void emulation_split_choices(const uint64_t *words, size_t count, const uint64_t *thresholds, uint8_t *basis,
                             uint8_t *bit, uint8_t *intensity);

/* Returns the number of detections written, at most `room`; *next is the first arrival that was not consumed, and
   count when everything up to `end` is registered. */
size_t emulation_detect(const uint64_t *positions, const uint8_t *tags, const uint64_t *words,
                        const uint64_t *uniforms, size_t count, size_t *next, const double *outcomes,
                        uint64_t basis_threshold, uint64_t end, uint64_t dead_pulses, double after_pulse_probability,
                        double after_pulse_decay, int discard_double, uint64_t *carry, uint64_t *detected,
                        uint8_t *basis, uint8_t *bit, size_t room);

#endif
