#!/bin/sh
# Runs on a big-endian machine, s390x by QEMU user emulation, what must not depend on the byte order: the unit tests of
# the crates that read and write bytes, and the payload of the demo in a container of an emulated LPAR. What this
# machine does not have for it is said in one line, and then nothing is run.
set -eu
cargo=${CARGO:-cargo}
here=$(dirname "$0")
rust=s390x-unknown-linux-gnu
target=$(realpath -m "${TARGET:-target}")/big-endian
skip() { echo "big-endian: skipped: $1"; exit 0; }

sh "$here/setup.sh" qemu-user-static gcc-s390x-linux-gnu libc6-dev-s390x-cross ||
    skip "the packages above cannot be installed"
[ -d "$(rustc --print sysroot)/lib/rustlib/$rust" ] || rustup target add "$rust" >/dev/null 2>&1 ||
    skip "there is no Rust standard library for $rust (rustup target add $rust)"

export CARGO_TARGET_S390X_UNKNOWN_LINUX_GNU_LINKER=s390x-linux-gnu-gcc
export CARGO_TARGET_S390X_UNKNOWN_LINUX_GNU_RUNNER="qemu-s390x-static -L /usr/s390x-linux-gnu"
export PROPTEST_CASES=${PROPTEST_CASES:-32}
# --lib, and not all: what starts programs or asks the kernel is no matter of byte order, and the emulation lacks some.
"$cargo" test --target "$rust" --target-dir "$target" --lib \
    -p zcri-codepage -p zcri-config -p zcri-cni -p zcri-shim -p zcri-sys -p zcri-dvipa -- \
    --skip listeners_are_found --skip the_kernel_takes --skip verifier_refuses --skip an_overlay_of_many --skip namespace::

# The plugin as it is on z/OS, with the stand-in for the stack, linked statically, by its tests of that backend.
static() { "$cargo" rustc -q --target "$rust" --target-dir "$target" "$@" -- -C target-feature=+crt-static; }
static -p zcri-dvipa --bin dvipa --features zos-stub
ZCRI_BIG_ENDIAN_DVIPA="$target/$rust/debug/dvipa" \
    "$cargo" test --target-dir "$target/../zos-stub" -p zcri-dvipa --features zos-stub --test it zos::

# A program in a container.
static -p zcri-demo-payload
ZCRI_BIG_ENDIAN="$target/$rust/debug/zcri-demo-payload" \
    "$cargo" test -p zcri-integration --test zos_big_endian
