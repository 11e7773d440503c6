"""Which C kernels exist: the C files, and the functions that Python may call in them.

Read by setup.py before the package is installed, so it imports nothing but the standard library.
"""

from typing import NamedTuple


class Kernel(NamedTuple):
    """One extension module `protocol.kernels.<module>` made of `c_files` and declared by `header`."""

    module: str
    header: str
    c_files: tuple[str, ...]
    declarations: str


EMULATION = Kernel(
    module="_emulation",
    header="emulation.h",
    c_files=("emulation.c",),
    declarations="""
        size_t emulation_propose(const double *, size_t, double, uint64_t, uint64_t, uint64_t *);
        size_t emulation_emit(const uint64_t *, const uint64_t *, const uint64_t *, size_t, const uint64_t *,
                              const double *, double, uint64_t *, uint8_t *);
        void emulation_split_choices(const uint64_t *, size_t, const uint64_t *, uint8_t *, uint8_t *, uint8_t *);
        size_t emulation_detect(const uint64_t *, const uint8_t *, const uint64_t *, const uint64_t *, size_t,
                                size_t *, const double *, uint64_t, uint64_t, uint64_t, double, double, int,
                                uint64_t *, uint64_t *, uint8_t *, uint8_t *, size_t);
    """,
)

DISTILLATION = Kernel(
    module="_distillation",
    header="distillation.h",
    c_files=("distillation_cascade.c", "distillation_hash.c", "distillation_ldpc.c"),
    declarations="""
        int qd_level(void);
        void qd_limit_level(int);
        const char *qd_features(void);
        typedef struct qd_cascade qd_cascade;
        qd_cascade *qd_cascade_new(int, uint64_t, uint32_t, uint32_t, uint32_t, const uint32_t *, const uint64_t *,
                                   int, int, const uint8_t *);
        void qd_cascade_free(qd_cascade *);
        uint32_t qd_cascade_active(const qd_cascade *);
        uint32_t qd_cascade_corrected(const qd_cascade *);
        size_t qd_cascade_opening(const qd_cascade *, uint8_t *);
        int qd_cascade_follow(qd_cascade *, const uint8_t *, const uint8_t *, size_t);
        void qd_cascade_answer(const qd_cascade *, uint8_t *);
        int64_t qd_cascade_open(qd_cascade *, const uint8_t *);
        int64_t qd_cascade_step(qd_cascade *, const uint8_t *, uint8_t *);
        void qd_cascade_records(const qd_cascade *, uint8_t *);
        void qd_cascade_bits(const qd_cascade *, uint8_t *);
        void qd_polynomial_hash(const uint8_t *, size_t, const uint8_t *, uint8_t *);
        size_t qd_split(const uint8_t *, const uint8_t *, size_t, uint8_t *, uint8_t *);
        int qd_toeplitz(const uint8_t *, size_t, const uint8_t *, size_t, uint8_t *);
        void qd_ldpc_syndrome(uint32_t, uint32_t, const uint32_t *, const uint32_t *, const uint32_t *,
                              const uint8_t *, uint8_t *);
        int qd_ldpc_decode(uint32_t, uint32_t, const uint32_t *, const uint32_t *, const uint32_t *, uint32_t,
                           uint32_t, int32_t, const uint32_t *, const int32_t *, const uint8_t *, uint32_t,
                           uint8_t *);
    """,
)

KERNELS: tuple[Kernel, ...] = (EMULATION, DISTILLATION)
