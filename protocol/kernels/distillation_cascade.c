/* Cascade's search for errors: the kernel of protocol/distill/reconciliation/cascade_search.py, whose twin specifies
 * it and whose messages it reproduces byte for byte.
 *
 * Up to 64 frames are processed together: a row is one 64-bit word with one bit per frame (lane). Alice keeps prefix
 * parities of rows; Bob keeps each frame's bits packed in the order of every pass, so that the parity of a short
 * block is one or two words.
 */
#include "distillation.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    uint32_t lo, hi;
    uint16_t lane;
    uint8_t pass;
} search;

struct qd_cascade {
    uint64_t size_bits;
    uint32_t rows, lanes, passes, words; /* words: of one frame */
    uint32_t stride;                     /* words, made odd: lanes written in turn must not share a cache set */
    uint32_t block_rows[QD_PASSES_MAX];
    int is_bob, reuse, infer_last;
    uint32_t *order, *inverse;  /* [pass][rows] */
    uint64_t *prefix;           /* Alice: [pass][rows + 1] */
    uint64_t *sums[QD_PASSES_MAX]; /* Bob: a row of parities per block */
    uint64_t *bits, *cuts, *odd; /* Bob: [pass][lane][stride] */
    uint32_t odd_count[QD_LANES_MAX][QD_PASSES_MAX];
    uint8_t is_cut[QD_LANES_MAX][QD_PASSES_MAX]; /* whether any block of the pass was cut */
    uint32_t running[QD_LANES_MAX];
    search *active, *ended;
    uint32_t active_count, active_capacity, ended_capacity, new_first, corrected;
};

static uint32_t parity64(uint64_t x)
{
    x ^= x >> 32;
    x ^= x >> 16;
    x ^= x >> 8;
    x ^= x >> 4;
    return (0x6996u >> (x & 15)) & 1;
}

static uint32_t lowest_bit(uint64_t x)
{
#if defined(__GNUC__)
    return (uint32_t)__builtin_ctzll(x);
#else
    uint32_t n = 0;
    while (!(x & 1)) x >>= 1, n++;
    return n;
#endif
}

static uint32_t highest_bit(uint64_t x)
{
#if defined(__GNUC__)
    return 63 - (uint32_t)__builtin_clzll(x);
#else
    uint32_t n = 0;
    while (x >>= 1) n++;
    return n;
#endif
}

/* Parity of bits lo ≤ i < hi, lo < hi. */
static uint32_t parity_range(const uint64_t *words, uint32_t lo, uint32_t hi)
{
    uint32_t first = lo >> 6, last = (hi - 1) >> 6;
    uint64_t head = ~UINT64_C(0) << (lo & 63), tail = ~UINT64_C(0) >> (63 - ((hi - 1) & 63));
    if (first == last) return parity64(words[first] & head & tail);
    uint64_t sum = (words[first] & head) ^ (words[last] & tail);
    for (uint32_t i = first + 1; i < last; i++) sum ^= words[i];
    return parity64(sum);
}

static uint64_t load_le(const uint8_t *bytes, uint32_t size)
{
    uint64_t value = 0;
    for (uint32_t i = 0; i < size; i++) value |= (uint64_t)bytes[i] << (8 * i);
    return value;
}

static void store_le(uint8_t *bytes, uint64_t value, uint32_t size)
{
    for (uint32_t i = 0; i < size; i++) bytes[i] = (uint8_t)(value >> (8 * i));
}

/* Row `row` of the packed string: `lanes` bits from bit row·lanes. The caller pads the string by 16 bytes. */
static uint64_t load_row(const uint8_t *packed, uint64_t row, uint32_t lanes)
{
    uint64_t bit = row * lanes;
    const uint8_t *at = packed + (bit >> 3);
    uint32_t shift = bit & 7;
    uint64_t value = load_le(at, 8) >> shift;
    if (shift) value |= (uint64_t)at[8] << (64 - shift);
    return lanes == 64 ? value : value & ((UINT64_C(1) << lanes) - 1);
}

static uint64_t mix64(uint64_t key, uint64_t index)
{
    uint64_t z = key + (index + 1) * UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

/* Fisher-Yates, as in protocol/distill/seeding.py. The draws are made in runs, apart from the swaps that use them. */
static void permute(uint32_t *order, uint32_t rows, uint64_t key)
{
    uint32_t drawn[256];
    for (uint32_t i = 0; i < rows; i++) order[i] = i;
    for (uint32_t left = rows; left > 1;) {
        uint32_t run = left - 1 < 256 ? left - 1 : 256;
        for (uint32_t i = 0; i < run; i++)
            drawn[i] = (uint32_t)(((mix64(key, rows - left + i) >> 32) * (left - i)) >> 32);
        for (uint32_t i = 0; i < run; i++, left--) {
            uint32_t kept = order[left - 1];
            order[left - 1] = order[drawn[i]];
            order[drawn[i]] = kept;
        }
    }
}

static void transpose64(uint64_t block[64])
{
    uint64_t mask = UINT64_C(0x00000000FFFFFFFF);
    for (uint32_t width = 32; width; width >>= 1, mask ^= mask << width)
        for (uint32_t base = 0; base < 64; base += 2 * width)
            for (uint32_t i = base; i < base + width; i++) {
                uint64_t swap = ((block[i] >> width) ^ block[i + width]) & mask;
                block[i] ^= swap << width;
                block[i + width] ^= swap;
            }
}

/* A random split: the rows whose bit of the stream is 0, then the others, as in protocol/distill/seeding.py. */
static void divide(uint32_t *order, uint32_t rows, uint64_t key)
{
    uint32_t second = 0; /* how many have a 1 */
    for (uint32_t row = 0; row < rows; row += 64) {
        uint64_t word = mix64(key, row / 64);
        if (rows - row < 64) word &= (UINT64_C(1) << (rows - row)) - 1;
        for (; word; word &= word - 1) second++;
    }
    uint32_t next[2] = {0, rows - second};
    uint64_t word = 0;
    for (uint32_t row = 0; row < rows; row++, word >>= 1) {
        if (row % 64 == 0) word = mix64(key, row / 64);
        order[next[word & 1]++] = row;
    }
}

/* Turn 64 rows of `lanes` bits into `lanes` words of 64 bits; a few lanes are faster one by one. */
static void to_lanes(uint64_t group[64], uint32_t lanes)
{
    uint64_t words[8] = {0};
    if (lanes > 8) {
        transpose64(group);
        return;
    }
    for (uint32_t lane = 0; lane < lanes; lane++)
        for (uint32_t i = 0; i < 64; i++) words[lane] |= (group[i] >> lane & 1) << i;
    memcpy(group, words, lanes * sizeof *words);
}

static uint32_t block_count(const qd_cascade *side, uint32_t pass)
{
    return (side->rows + side->block_rows[pass] - 1) / side->block_rows[pass];
}

static uint32_t sent_blocks(const qd_cascade *side, uint32_t pass)
{
    uint32_t count = block_count(side, pass);
    return pass && side->infer_last ? count - 1 : count;
}

static size_t frame_at(const qd_cascade *side, uint32_t lane, uint32_t pass)
{
    return ((size_t)pass * side->lanes + lane) * side->stride;
}

/* Bob: pack each frame in the order of `pass`, sum the rows of each block, and mark where blocks begin. */
static void arrange(qd_cascade *bob, uint32_t pass, const uint64_t *rows)
{
    const uint32_t *order = bob->order + (size_t)pass * bob->rows;
    uint32_t size = bob->block_rows[pass], left = size, block = 0;
    uint64_t sum = 0;
    for (uint32_t word = 0; word < bob->words; word++) {
        uint64_t group[64] = {0};
        uint32_t count = bob->rows - word * 64 < 64 ? bob->rows - word * 64 : 64;
        uint64_t starts = 0;
        for (uint32_t i = 0; i < count; i++) {
            if (left == size) starts |= UINT64_C(1) << i;
            group[i] = rows[order[word * 64 + i]];
            sum ^= group[i];
            if (--left == 0) {
                bob->sums[pass][block++] = sum;
                sum = 0;
                left = size;
            }
        }
        to_lanes(group, bob->lanes);
        for (uint32_t lane = 0; lane < bob->lanes; lane++) bob->bits[frame_at(bob, lane, pass) + word] = group[lane];
        bob->cuts[frame_at(bob, 0, pass) + word] = starts;
    }
    for (uint32_t lane = 1; lane < bob->lanes; lane++)
        memcpy(bob->cuts + frame_at(bob, lane, pass), bob->cuts + frame_at(bob, 0, pass), bob->words * sizeof *bob->cuts);
    if (left != size) bob->sums[pass][block] = sum;
}

static void accumulate(qd_cascade *alice, uint32_t pass, const uint64_t *rows)
{
    const uint32_t *order = alice->order + (size_t)pass * alice->rows;
    uint64_t *prefix = alice->prefix + (size_t)pass * (alice->rows + 1);
    uint64_t sum = prefix[0] = 0;
    for (uint32_t i = 0; i < alice->rows; i++) prefix[i + 1] = sum ^= rows[order[i]];
}

static int allocate(qd_cascade *side)
{
    size_t table = (size_t)side->passes * side->rows, frames = (size_t)side->lanes * side->passes * side->stride;
    side->order = malloc((table + 1) * sizeof *side->order);
    if (!side->order) return 0;
    if (!side->is_bob) {
        side->prefix = malloc((table + side->passes) * sizeof *side->prefix);
        return side->prefix != NULL;
    }
    side->inverse = malloc((table + 1) * sizeof *side->inverse);
    side->bits = malloc((frames + 1) * sizeof *side->bits);
    side->cuts = malloc((frames + 1) * sizeof *side->cuts);
    side->odd = calloc(frames + 1, sizeof *side->odd);
    int complete = side->inverse && side->bits && side->cuts && side->odd;
    for (uint32_t pass = 0; pass < side->passes; pass++) {
        side->sums[pass] = malloc((block_count(side, pass) + 1) * sizeof *side->sums[pass]);
        complete = complete && side->sums[pass];
    }
    return complete;
}

qd_cascade *qd_cascade_new(int is_bob, uint64_t size_bits, uint32_t rows, uint32_t lanes, uint32_t passes,
                           const uint32_t *block_rows, const uint64_t *keys, int reuse, int infer_last,
                           const uint8_t *packed)
{
    if (lanes > QD_LANES_MAX || passes > QD_PASSES_MAX) return NULL;
    qd_cascade *side = calloc(1, sizeof *side);
    uint64_t *plain = malloc(((size_t)rows + 1) * sizeof *plain);
    if (!side || !plain) {
        free(plain);
        free(side);
        return NULL;
    }
    side->size_bits = size_bits;
    side->rows = rows;
    side->lanes = lanes;
    side->passes = passes;
    side->words = (rows + 63) / 64;
    side->stride = side->words | 1;
    side->is_bob = is_bob;
    side->reuse = reuse;
    side->infer_last = infer_last;
    memcpy(side->block_rows, block_rows, passes * sizeof *block_rows);
    if (!allocate(side)) {
        free(plain);
        qd_cascade_free(side);
        return NULL;
    }
    for (uint32_t row = 0; row < rows; row++) plain[row] = load_row(packed, row, lanes);
    for (uint32_t pass = 0; pass < passes; pass++) {
        uint32_t *order = side->order + (size_t)pass * rows;
        if (pass == 0)
            for (uint32_t i = 0; i < rows; i++) order[i] = i;
        else if (infer_last && 2 * (uint64_t)block_rows[pass] >= rows)
            divide(order, rows, keys[pass]);
        else
            permute(order, rows, keys[pass]);
        if (is_bob) {
            uint32_t *inverse = side->inverse + (size_t)pass * rows;
            for (uint32_t i = 0; i < rows; i++) inverse[order[i]] = i;
            arrange(side, pass, plain);
        } else {
            accumulate(side, pass, plain);
        }
    }
    qd_wipe(plain, rows);
    free(plain);
    return side;
}

void qd_cascade_free(qd_cascade *side)
{
    if (!side) return;
    if (side->bits) qd_wipe(side->bits, (size_t)side->lanes * side->passes * side->stride);
    if (side->prefix) qd_wipe(side->prefix, (size_t)side->passes * (side->rows + 1));
    free(side->order);
    free(side->inverse);
    free(side->prefix);
    free(side->bits);
    free(side->cuts);
    free(side->odd);
    for (uint32_t pass = 0; pass < side->passes; pass++) free(side->sums[pass]);
    free(side->active);
    free(side->ended);
    free(side);
}

uint32_t qd_cascade_active(const qd_cascade *side) { return side->active_count; }

uint32_t qd_cascade_corrected(const qd_cascade *side) { return side->corrected; }

static int reserve(search **list, uint32_t *capacity, uint64_t wanted)
{
    if (wanted <= *capacity) return 1;
    if (wanted > UINT32_MAX / 2) return 0;
    search *grown = realloc(*list, 2 * wanted * sizeof **list);
    if (!grown) return 0;
    *list = grown;
    *capacity = (uint32_t)(2 * wanted);
    return 1;
}

/* ---- Alice */

size_t qd_cascade_opening(const qd_cascade *alice, uint8_t *out)
{
    uint32_t width = (alice->lanes + 7) / 8;
    uint8_t *at = out;
    for (uint32_t pass = 0; pass < alice->passes; pass++) {
        const uint64_t *prefix = alice->prefix + (size_t)pass * (alice->rows + 1);
        uint32_t size = alice->block_rows[pass], blocks = sent_blocks(alice, pass);
        for (uint32_t block = 0; block < blocks; block++, at += width) {
            uint64_t end = (uint64_t)(block + 1) * size;
            store_le(at, prefix[end < alice->rows ? end : alice->rows] ^ prefix[block * size], width);
        }
    }
    return (size_t)(at - out);
}

/* Narrow the running searches, drop those that ended, append new ones; QD_MALFORMED for one outside the block. */
int qd_cascade_follow(qd_cascade *alice, const uint8_t *directions, const uint8_t *records, size_t count)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < alice->active_count; i++) {
        search s = alice->active[i];
        uint32_t middle = (s.lo + s.hi) / 2;
        if (directions[i >> 3] >> (i & 7) & 1)
            s.lo = middle;
        else
            s.hi = middle;
        if (s.hi - s.lo > 1) alice->active[kept++] = s;
    }
    alice->active_count = kept;
    if (!reserve(&alice->active, &alice->active_capacity, kept + (uint64_t)count)) return QD_NO_MEMORY;
    for (size_t i = 0; i < count; i++) {
        uint64_t record = load_le(records + 8 * i, 8);
        uint64_t lane = record >> 48, pass = record >> 40 & 0xFF;
        uint32_t lo = (uint32_t)(record >> 20 & 0xFFFFF), hi = (uint32_t)(record & 0xFFFFF) + 1;
        if (lane >= alice->lanes || pass >= alice->passes || lo + 1 >= hi || hi > alice->rows) return QD_MALFORMED;
        alice->active[alice->active_count++] = (search){lo, hi, (uint16_t)lane, (uint8_t)pass};
    }
    return 0;
}

void qd_cascade_answer(const qd_cascade *alice, uint8_t *out)
{
    memset(out, 0, (alice->active_count + 7) / 8);
    for (uint32_t i = 0; i < alice->active_count; i++) {
        search s = alice->active[i];
        const uint64_t *prefix = alice->prefix + (size_t)s.pass * (alice->rows + 1);
        uint64_t parity = (prefix[s.lo] ^ prefix[(s.lo + s.hi) / 2]) >> s.lane & 1;
        out[i >> 3] |= (uint8_t)(parity << (i & 7));
    }
}

/* ---- Bob */

static uint32_t block_start(const qd_cascade *bob, uint32_t lane, uint32_t pass, uint32_t position)
{
    if (!bob->is_cut[lane][pass]) return position - position % bob->block_rows[pass];
    const uint64_t *cuts = bob->cuts + frame_at(bob, lane, pass);
    uint32_t word = position >> 6;
    uint64_t below = cuts[word] & (~UINT64_C(0) >> (63 - (position & 63)));
    while (!below) below = cuts[--word]; /* ends: position 0 is always a cut */
    return word * 64 + highest_bit(below);
}

static uint32_t block_end(const qd_cascade *bob, uint32_t lane, uint32_t pass, uint32_t start)
{
    if (!bob->is_cut[lane][pass]) {
        uint32_t end = start + bob->block_rows[pass];
        return end < bob->rows ? end : bob->rows;
    }
    const uint64_t *cuts = bob->cuts + frame_at(bob, lane, pass);
    uint32_t position = start + 1, word = position >> 6;
    if (position >= bob->rows) return bob->rows;
    uint64_t above = cuts[word] & (~UINT64_C(0) << (position & 63));
    while (!above) {
        if (++word == bob->words) return bob->rows;
        above = cuts[word];
    }
    return word * 64 + lowest_bit(above);
}

/* Correct the bit at `position` of `own` pass; the block around it in every other pass changes parity. */
static void flip(qd_cascade *bob, uint32_t lane, uint32_t own, uint32_t position)
{
    uint32_t row = bob->order[(size_t)own * bob->rows + position];
    bob->corrected++;
    for (uint32_t pass = 0; pass < bob->passes; pass++) {
        uint32_t at = bob->inverse[(size_t)pass * bob->rows + row];
        size_t frame = frame_at(bob, lane, pass);
        bob->bits[frame + (at >> 6)] ^= UINT64_C(1) << (at & 63);
        if (pass == own) continue;
        uint32_t start = block_start(bob, lane, pass, at);
        uint64_t *word = bob->odd + frame + (start >> 6), bit = UINT64_C(1) << (start & 63);
        *word ^= bit;
        bob->odd_count[lane][pass] += *word & bit ? 1 : (uint32_t)-1;
    }
}

/* Start searches in the odd blocks of one pass; blocks of one bit are corrected at once. Returns 0 without memory. */
static int start_pass(qd_cascade *bob, uint32_t lane, uint32_t pass)
{
    uint32_t left = bob->odd_count[lane][pass];
    uint64_t *odd = bob->odd + frame_at(bob, lane, pass);
    if (!reserve(&bob->active, &bob->active_capacity, (uint64_t)bob->active_count + left)) return 0;
    bob->odd_count[lane][pass] = 0;
    for (uint32_t word = 0; left; word++) {
        uint64_t found = odd[word];
        odd[word] = 0;
        for (; found; found &= found - 1, left--) {
            uint32_t lo = word * 64 + lowest_bit(found), hi = block_end(bob, lane, pass, lo);
            if (hi - lo == 1) {
                flip(bob, lane, pass, lo);
                continue;
            }
            bob->active[bob->active_count++] = (search){lo, hi, (uint16_t)lane, (uint8_t)pass};
            bob->running[lane]++;
        }
    }
    return 1;
}

/* For each chosen frame without a running search: the lowest pass with odd blocks.
 *
 * With true parities every flip corrects an error, so there are never more flips than bits. Parities that contradict
 * each other would flip for ever: they are QD_MALFORMED as soon as the count says so. */
static int64_t start_next(qd_cascade *bob, const uint8_t *chosen)
{
    const uint64_t flips_max = (uint64_t)bob->rows * bob->lanes;
    bob->new_first = bob->active_count;
    for (uint32_t lane = 0; lane < bob->lanes; lane++) {
        if (!chosen[lane]) continue;
        for (uint32_t pass = 0; pass < bob->passes && !bob->running[lane];) {
            if (!bob->odd_count[lane][pass]) {
                pass++;
                continue;
            }
            if (!start_pass(bob, lane, pass)) return QD_NO_MEMORY;
            if (bob->corrected > flips_max) return QD_MALFORMED;
            pass = 0; /* flips of one-bit blocks may have made a lower pass odd */
        }
    }
    return bob->active_count - bob->new_first;
}

/* Compare Alice's opening with Bob's sums. Returns the number of new searches. */
int64_t qd_cascade_open(qd_cascade *bob, const uint8_t *opening)
{
    uint32_t width = (bob->lanes + 7) / 8;
    uint64_t unused = bob->lanes == 64 ? 0 : ~UINT64_C(0) << bob->lanes, total = 0;
    for (uint32_t pass = 0; pass < bob->passes; pass++) {
        uint32_t sent = sent_blocks(bob, pass), blocks = block_count(bob, pass);
        uint64_t sum = 0;
        for (uint32_t block = 0; block < blocks; block++) {
            uint64_t theirs = sum ^ total;
            if (block < sent) {
                theirs = load_le(opening, width);
                opening += width;
                if (theirs & unused) return QD_MALFORMED;
            }
            sum ^= theirs;
            uint32_t start = block * bob->block_rows[pass];
            for (uint64_t differ = theirs ^ bob->sums[pass][block]; differ; differ &= differ - 1) {
                uint32_t lane = lowest_bit(differ);
                bob->odd[frame_at(bob, lane, pass) + (start >> 6)] |= UINT64_C(1) << (start & 63);
                bob->odd_count[lane][pass]++;
            }
        }
        if (pass == 0) total = sum;
    }
    uint8_t every[QD_LANES_MAX];
    memset(every, 1, sizeof every);
    return start_next(bob, every);
}

/* Take one answer per running search; writes a direction per search. Returns the number of new searches. */
int64_t qd_cascade_step(qd_cascade *bob, const uint8_t *answers, uint8_t *directions)
{
    uint8_t chosen[QD_LANES_MAX] = {0};
    uint32_t kept = 0, ended = 0;
    if (!reserve(&bob->ended, &bob->ended_capacity, bob->active_count)) return QD_NO_MEMORY;
    memset(directions, 0, (bob->active_count + 7) / 8);
    for (uint32_t i = 0; i < bob->active_count; i++) {
        search s = bob->active[i];
        size_t frame = frame_at(bob, s.lane, s.pass);
        uint32_t middle = (s.lo + s.hi) / 2, theirs = answers[i >> 3] >> (i & 7) & 1;
        uint32_t right = theirs == parity_range(bob->bits + frame, s.lo, middle);
        directions[i >> 3] |= (uint8_t)(right << (i & 7));
        if (bob->reuse) {
            bob->cuts[frame + (middle >> 6)] |= UINT64_C(1) << (middle & 63);
            bob->is_cut[s.lane][s.pass] = 1;
        }
        s.lo = right ? middle : s.lo;
        s.hi = right ? s.hi : middle;
        if (s.hi - s.lo > 1)
            bob->active[kept++] = s;
        else
            bob->ended[ended++] = s;
    }
    bob->active_count = kept;
    for (uint32_t i = 0; i < ended; i++) {
        search s = bob->ended[i];
        flip(bob, s.lane, s.pass, s.lo);
        chosen[s.lane] = 1;
        bob->running[s.lane]--;
    }
    return start_next(bob, chosen);
}

void qd_cascade_records(const qd_cascade *bob, uint8_t *out)
{
    for (uint32_t i = bob->new_first; i < bob->active_count; i++, out += 8) {
        search s = bob->active[i];
        store_le(out, (uint64_t)s.lane << 48 | (uint64_t)s.pass << 40 | (uint64_t)s.lo << 20 | (s.hi - 1), 8);
    }
}

/* The corrected string, packed; `packed` has rows·lanes bits and 16 bytes of padding, all zero. */
void qd_cascade_bits(const qd_cascade *bob, uint8_t *packed)
{
    for (uint32_t word = 0; word < bob->words; word++) {
        uint64_t group[64] = {0};
        for (uint32_t lane = 0; lane < bob->lanes; lane++) group[lane] = bob->bits[frame_at(bob, lane, 0) + word];
        transpose64(group);
        uint32_t count = bob->rows - word * 64 < 64 ? bob->rows - word * 64 : 64;
        for (uint32_t i = 0; i < count; i++) {
            uint64_t bit = (uint64_t)(word * 64 + i) * bob->lanes;
            uint8_t *at = packed + (bit >> 3);
            uint32_t shift = bit & 7;
            store_le(at, load_le(at, 8) | group[i] << shift, 8);
            if (shift) at[8] |= (uint8_t)(group[i] >> (64 - shift));
        }
    }
}
