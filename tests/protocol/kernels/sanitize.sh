#!/bin/sh
# Run the kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer, in a copy of the tree, so that the
# installed kernels stay as they are. Needs gcc with its sanitizer libraries. Usage: sanitize.sh [python]
set -eu
python=$(command -v "${1:-python3}")
case $python in /*) ;; *) python=$PWD/$python ;; esac
root=$(cd "$(dirname "$0")/../../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for room in protocol tests; do cp -R "$root/$room" "$work/"; done
cp "$root/setup.py" "$root/pyproject.toml" "$root/LICENSE" "$work/"
find "$work" -name '*.so' -delete
mkdir -p "$work/qnode/io" "$work/qnode/api" "$work/ledger" "$work/loadtest/fleet" "$work/config"
cp "$root/loadtest/fleet/_pages.c" "$work/loadtest/fleet/"
cd "$work"
: > README.md
CFLAGS='-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer' \
    "$python" setup.py --quiet build_ext --inplace
ls protocol/kernels/_distillation*.so > /dev/null
# Python itself leaks by design, so leaks are not looked for; the paths put the copy before the installed package.
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" \
    ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH="$work" \
    "$python" -c "
import sys
import protocol.kernels.distillation as kernels
assert kernels.__file__.startswith('$work'), kernels.__file__
assert kernels.library is not None, 'the kernels were not built'
import pytest
sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', 'tests/protocol/kernels/test_distillation_kernels.py',
                      'tests/protocol/distill/test_cascade.py', 'tests/protocol/distill/test_ldpc.py',
                      'tests/protocol/quantum/test_emulation_kernel.py']))
"
