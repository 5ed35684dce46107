//! Pods without a network namespace, confined by eBPF.
