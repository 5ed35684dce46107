# The targets of a working day. `make demo` and `make test` need root and a Debian-like system; they install the
# packages that are missing.

CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
RELEASE := $(TARGET)/release
# What the daemon needs on the node, and what the tests need beside it.
PACKAGES := runc crun containernetworking-plugins iptables iproute2 busybox-static apparmor
BENCH_PACKAGES := $(PACKAGES) containerd
# Tests touch the kernel's namespaces, mounts and interfaces: more at a time than CPUs only queue.
TEST_ARGS ?=

.PHONY: all setup build binaries demo demo-lpar test fuzz bench zos-stub big-endian ci verify-units fmt fmt-check lint doc deny clean

all: build

# Installs the packages that are missing; does nothing, and needs no network, when none is.
setup:
	@sh integration/setup.sh $(PACKAGES)

# target/release/{zcrid,zcri-shim}
build:
	$(CARGO) build --release --workspace --bins
	$(CARGO) rustc --release -q -p zcri-demo-payload --target-dir $(TARGET)/static -- -C target-feature=+crt-static

demo: setup build
	$(RELEASE)/cri-demo

# Two emulated z/OS LPARs of one sysplex; see docs/zos-emulation.md.
demo-lpar: setup build
	$(RELEASE)/lpar-demo

# What the integration tests start.
binaries:
	$(CARGO) build --workspace --bins
	$(CARGO) rustc -q -p zcri-demo-payload --target-dir $(TARGET)/static -- -C target-feature=+crt-static

test: setup binaries
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
	    set -x; $(CARGO) nextest run --workspace --no-fail-fast $(TEST_ARGS); \
	else \
	    set -x; $(CARGO) test --workspace $(TEST_ARGS); \
	fi

# Fuzzes the decoders that read untrusted bytes, each for so long.
FUZZ_SECONDS ?= 60
fuzz:
	@CARGO=$(CARGO) FUZZ_SECONDS=$(FUZZ_SECONDS) daemon/streaming/fuzz/run

# Writes docs/benchmarks.md and docs/benchmarks.svg.
bench: build
	$(CARGO) build --release -p zcri-dvipa --example cni-bench
	@sh integration/setup.sh $(BENCH_PACKAGES)
	integration/bench/run.sh $(BENCH_ARGS)

# The arms for z/OS, checked and run on Linux against a stand-in for the calls of z/OS (sys/src/zos/stub.rs). The tests
# have a target directory of their own: other tests must not take the plugin from there.
zos-stub:
	$(CARGO) clippy -p zcri-sys -p zcri-dvipa -p zcri-daemon --all-targets \
	    --features zcri-sys/zos-stub,zcri-dvipa/zos-stub,zcri-daemon/zos-stub -- -D warnings
	$(CARGO) test -q --target-dir $(TARGET)/zos-stub -p zcri-dvipa --features zos-stub --test it zos::

# Unit tests of what reads and writes bytes, and a program in a container, on a big-endian machine: s390x by QEMU. Says
# what is missing where it cannot be done.
big-endian: setup binaries
	@CARGO=$(CARGO) TARGET=$(TARGET) integration/big-endian.sh

# Exactly what the CI runs. The tests come last: whoever looks at the end wants to see theirs.
ci: FUZZ_SECONDS = 3
ci: fmt-check lint zos-stub doc deny verify-units fuzz big-endian test

fmt:
	$(CARGO) fmt --all

fmt-check:
	$(CARGO) fmt --all -- --check

lint:
	$(CARGO) clippy --workspace --all-targets -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items

# Licences, bans and sources need no network; the advisories need their database, and are left out where it cannot be
# had.
deny:
	@if ! $(CARGO) deny --version >/dev/null 2>&1; then \
	    echo "deny: cargo-deny is not installed: licences, bans and advisories are not checked"; \
	elif ! $(CARGO) deny --workspace check --hide-inclusion-graph licenses bans sources; then \
	    exit 1; \
	elif timeout 60 $(CARGO) deny --workspace fetch db >/dev/null 2>&1; then \
	    $(CARGO) deny --workspace check --disable-fetch advisories; \
	else \
	    echo "deny: the advisory database cannot be had: advisories are not checked"; \
	fi

# The units, as far as this machine has systemd to read them.
verify-units:
	@systemd/verify

clean:
	$(CARGO) clean
