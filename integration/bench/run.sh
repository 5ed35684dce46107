#!/bin/bash
# Measures zcrid and Debian's containerd side by side, and writes docs/benchmarks.md with its plot.
#
#   integration/bench/run.sh [options of cri-bench]
#
# Both daemons get a root of their own in memory, the same OCI runtime, the same CNI plugins with a bridge each, and
# take their images from the registry in cri-bench. They run for as long as this script does. Needs root.
set -euo pipefail

repo=$(cd "$(dirname "$0")/../.." && pwd)
bin=${ZCRI_BIN_DIR:-${CARGO_TARGET_DIR:-$repo/target}/release}
port=5077
runc=$(command -v runc || true)
containerd=$(command -v containerd || true)

fail() { echo "bench: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || fail "prerequisite: run it as root"
[ -n "$runc" ] || fail "prerequisite: runc is missing; run \`make setup\`"
[ -n "$containerd" ] || fail "prerequisite: containerd is missing; install the package containerd"
for binary in zcrid zcri-shim dvipa cri-bench examples/cni-bench; do
    [ -x "$bin/$binary" ] || fail "prerequisite: $bin/$binary is missing; run \`make build\`"
done

memory=/dev/shm
[ "$(stat -f -c %T $memory 2>/dev/null)" = tmpfs ] || memory=/tmp
work=$(mktemp -d "$memory/zcri-bench.XXXXXX")
# Short, for the socket paths in it.
state=$(mktemp -d /run/zb.XXXX)
pids=()

# Ends what was started, by process id, and removes what it left.
clean() {
    local status=$? pid name
    for pid in "${pids[@]}"; do
        kill "$pid" 2>/dev/null || true
        timeout 15 tail --pid="$pid" -f /dev/null || kill -9 "$pid" 2>/dev/null || true
    done
    # Shims outlive their daemon; only those whose command line names this run's directories are ours.
    for pid in $(grep -lazF -e "$work" -e "$state" /proc/[0-9]*/cmdline 2>/dev/null | cut -d/ -f3); do
        case $(cat "/proc/$pid/comm" 2>/dev/null) in
            containerd-shim* | zcri-shim) kill "$pid" 2>/dev/null || true ;;
        esac
    done
    awk -v a="$work/" -v b="$state/" 'index($2, a) == 1 || index($2, b) == 1 { print $2 }' /proc/mounts | sort -r |
        while read -r mount; do umount -l "$mount" || true; done
    for name in zbench0 cbench0; do ip link del $name 2>/dev/null || true; done
    find /sys/fs/cgroup -depth -type d -path '*/cri-bench*' -exec rmdir {} + 2>/dev/null || true
    if [ $status != 0 ]; then
        echo "bench: FAILED; the ends of the daemons' logs:" >&2
        tail -n 20 "$work"/*.log >&2 || true
    fi
    rm -rf "$work" "$state"
}
trap clean EXIT

# conflist DIR NETWORK SUBNET
conflist() {
    mkdir -p "$1"
    cat >"$1/10-bench.conflist" <<JSON
{"cniVersion": "1.0.0", "name": "$2", "plugins": [
  {"type": "bridge", "bridge": "$2", "isGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "$work/ipam", "ranges": [[{"subnet": "$3"}]],
            "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
}

# ready SOCKET PID NAME
ready() {
    for _ in $(seq 200); do
        [ -S "$1" ] && return
        kill -0 "$2" 2>/dev/null || fail "$3 ended at once"
        sleep 0.05
    done
    fail "$3 does not listen on $1"
}

conflist "$work/zcri.d" zbench0 10.78.0.0/16
cat >"$work/policy.json" <<'JSON'
{"default": [{"type": "insecureAcceptAnything"}]}
JSON
: >"$work/registries.conf"
cat >"$work/zcri.toml" <<TOML
[api]
listen = "$state/zcri.sock"
[storage]
root = "$work/zcri"
state = "$state/zcri"
[runtime.handlers.runc]
path = "$runc"
[network]
conf_dir = "$work/zcri.d"
plugin_dirs = ["/usr/lib/cni"]
[image]
registries_conf = "$work/registries.conf"
policy = "$work/policy.json"
TOML
"$bin/zcrid" --config "$work/zcri.toml" >"$work/zcrid.log" 2>&1 &
pids+=($!)
ready "$state/zcri.sock" $! zcrid

conflist "$work/containerd.d" cbench0 10.79.0.0/16
cat >"$work/containerd.toml" <<TOML
version = 2
root = "$work/containerd"
state = "$state/containerd"
[grpc]
  address = "$state/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "$work/opt"
[plugins."io.containerd.grpc.v1.cri"]
  # The image of the sandboxes' own process, which only sleeps.
  sandbox_image = "127.0.0.1:$port/bench/busybox:1"
  restrict_oom_score_adj = true
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$work/containerd.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "$runc"
TOML
"$containerd" --config "$work/containerd.toml" >"$work/containerd.log" 2>&1 &
pids+=($!)
ready "$state/containerd.sock" $! containerd

mkdir -p "$repo/docs"
"$bin/cri-bench" --endpoint "zcri=$state/zcri.sock" --endpoint "containerd=$state/containerd.sock" \
    --registry-port $port --markdown "$repo/docs/benchmarks.md" --svg "$repo/docs/benchmarks.svg" "$@"

# Each plugin by itself, in namespaces of its own.
TMPDIR=$work "$bin/examples/cni-bench" 200 "$bin/dvipa" /usr/lib/cni >"$work/cni.md"
cat >>"$repo/docs/benchmarks.md" <<'MARKDOWN'

## ADD and DEL of a pod's network

The life of the plugin's process, one pod after the other, in turn: medians of 200. Both masquerade.

MARKDOWN
cat "$work/cni.md" >>"$repo/docs/benchmarks.md"
